"""What an evaluation is about: an adapter that is on a pipe, or one from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters import lora as adapters
from ..adapters.contents import weights_path
from ..adapters.download import local_folder
from ..adapters.evaluation_file import sha256
from ..adapters.loading import load_adapter
from ..adapters.read import read_adapter
from ..data.concepts import Concept, concept_from_json
from ..unlearner import FDUnlearner


@dataclass(frozen=True)
class AdapterUnderTest:
    """An adapter on a pipe.

    Args:
        pipe: the pipeline.
        component: the denoiser that it is on.
        adapter_name: its name there.
        recipe: what trained it.
        digest: SHA-256 of its weights' file; None: it is in none.
    """

    pipe: Any
    component: str
    adapter_name: str
    recipe: Mapping[str, Any]
    digest: str | None = None

    @property
    def model(self) -> torch.nn.Module:
        """The denoiser."""
        return getattr(self.pipe, self.component)

    @contextmanager
    def without(self) -> Iterator[None]:
        """The pipe as it was before the adapter."""
        with adapters.scaled(self.model, self.adapter_name, 0.0):
            yield


def concepts_of(recipe: Mapping[str, Any], targets: Sequence[str] = ()) -> list[Concept]:
    """What an adapter unlearned, by its recipe; of a merged one, what its parts did.

    Args:
        recipe: of the adapter.
        targets: only these; none: all.

    Raises:
        ValueError: if the recipe does not say, or one of the targets is not among them.
    """
    parts = [recipe, *recipe.get("merged", ())]
    found = [concept_from_json(one) for part in parts for one in part.get("concepts", ())]
    if not found:
        raise ValueError("the recipe does not say what the adapter unlearned: pass concepts")
    names = [concept.target for concept in found]
    for target in targets:
        if target not in names:
            raise ValueError(f"the adapter did not unlearn {target!r}: choose {', '.join(names)}")
    return [concept for concept in found if not targets or concept.target in targets]


@contextmanager
def adapter_under_test(pipe: Any, source: FDUnlearner | str | Path) -> Iterator[AdapterUnderTest]:
    """The adapter on the pipe, while the context lasts; one from a folder is taken off then.

    Args:
        pipe: the pipeline; what is active on it counts as part of the model.
        source: an unlearner that trained on this pipe, or where an adapter was saved to, or its
            name on the Hub.

    Raises:
        ValueError: if the unlearner has trained nothing, or on another pipe, or the adapter
            cannot be loaded.
        HubError: if the Hub does not give it.
    """
    if isinstance(source, FDUnlearner):
        name = source.adapter_name
        if source.pipe is not pipe:
            raise ValueError("the unlearner is of another pipe: pass unlearner.pipe")
        if name is None or name not in getattr(source.model, "peft_config", {}):
            raise ValueError("the unlearner's adapter is not on the pipe: call unlearn first")
        yield AdapterUnderTest(pipe, source.component, name, source.recipe)
        return
    found = read_adapter(local_folder(source))
    model = getattr(pipe, found.component)
    before = adapters.snapshot(model)
    _, name = load_adapter(pipe, source, None, found.component)
    try:
        digest = sha256(weights_path(found))
        yield AdapterUnderTest(pipe, found.component, name, found.recipe, digest)
    finally:
        adapters.remove(model, name, before)
