"""How a pipeline calls its denoiser, found by comparing calls: no model family is named here.

Some arguments have an entry for each prompt; the prompt decides some of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.nested import same

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """Arguments of a denoiser call, by dotted name.

    Args:
        rows: tensors and lists that have one entry for each prompt.
        listed: those of them that are lists.
        texts: those of `rows` that depend on the prompt. An entry may be None: pipelines leave a
            mask out where all prompts of a call are equally long.
    """

    rows: frozenset[str]
    listed: frozenset[str]
    texts: tuple[str, ...]


def find_layout(singles: Sequence[Inputs], together: Inputs) -> Layout:
    """Compare the calls for several prompts one by one with the call for all of them.

    Args:
        singles: the first call for each prompt, from the same noise; at least two.
        together: the first call for all prompts at once.

    Raises:
        ValueError: if what depends on the prompts has no entry for each.
    """
    rows: set[str] = set()
    texts: list[str] = []
    for name in together:
        alone = [single.get(name) for single in singles]
        joint = together[name]
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
    return Layout(frozenset(rows), frozenset(listed), tuple(texts))


def _length(value: Any) -> int | None:
    if torch.is_tensor(value):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, list | tuple) else None
