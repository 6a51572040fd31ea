"""How a pipeline calls its denoiser, found by comparing calls: no model family is named here."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.nested import same

RESERVED = ("prompt", "generator", "output_type", "num_images_per_prompt", "num_videos_per_prompt")
"""Arguments of a pipeline that recording sets itself."""


@dataclass(frozen=True)
class CallSignature:
    """Arguments of a denoiser call, by dotted name.

    A text may be None: pipelines leave a mask out where all prompts of a call are equally long.
    """

    rows: frozenset[str]  # tensors and lists that have one entry for each prompt
    listed: frozenset[str]  # those of the rows that are lists
    texts: tuple[str, ...]  # those of the rows that depend on the prompt


def find_call_signature(
    singles: Sequence[Mapping[str, Any]], together: Mapping[str, Any]
) -> CallSignature:
    """Compare the first calls for several prompts, each by itself, with that for all of them.

    All start from the same noise, so what differs depends on the prompt; what has an entry for
    each prompt in the joint call, and one in each call by itself, belongs to the rows.
    """
    rows: set[str] = set()
    texts: list[str] = []
    for name, joint in together.items():
        alone = [single.get(name) for single in singles]
        lengths = {_length(value) for value in alone if value is not None}
        if _length(joint) == len(singles) and lengths <= {1}:
            rows.add(name)
            # None among them: a mask that only calls of several prompts have.
            if any(v is None or not same(v, alone[0]) for v in alone):
                texts.append(name)
        elif not all(same(value, joint) for value in alone):
            raise ValueError(
                f"cannot record this pipeline: its denoiser's argument {name} depends on the "
                "prompts and does not have an entry for each"
            )
    listed = {name for name in rows if not torch.is_tensor(together[name])}
    return CallSignature(frozenset(rows), frozenset(listed), tuple(texts))


def _length(value: Any) -> int | None:
    has_length = value.dim() > 0 if torch.is_tensor(value) else isinstance(value, list | tuple)
    return len(value) if has_length else None


def check_arguments(pipe: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of recorded runs that recording sets or that the pipe does not take."""
    parameters = inspect.signature(pipe.__call__).parameters
    for name, value in kwargs.items():
        if name in RESERVED:
            raise ValueError(f"pipeline_kwargs may not hold {name!r}: it is set here")
        if name not in parameters:  # what `**kwargs` would swallow, too
            near = difflib.get_close_matches(name, parameters, n=1)
            advice = f": did you mean {near[0]}?" if near else ""
            raise ValueError(f"{type(pipe).__name__} takes no {name!r}{advice}")
        if name.startswith("negative_prompt") and isinstance(value, list):
            raise ValueError(f"{name} must be one text for all prompts, got {value!r}")
