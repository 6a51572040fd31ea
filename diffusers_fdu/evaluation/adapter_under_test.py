"""The adapter that an evaluation is about: one on a pipe, or from a folder or the Hub."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters import lora as adapters
from ..adapters.download import local_folder
from ..adapters.evaluation_file import sha256
from ..adapters.loading import load_adapter
from ..adapters.read import read_adapter
from ..data.concepts import Concept, concept_from_json
from ..unlearner import FDUnlearner


@dataclass(frozen=True)
class AdapterUnderTest:
    """An adapter on a component of a pipe; `digest` is the SHA-256 of its file, if it has one."""

    pipe: Any
    component: str
    adapter_name: str
    recipe: Mapping[str, Any]
    digest: str | None = None

    @property
    def model(self) -> torch.nn.Module:
        """The denoiser that the adapter is on."""
        return getattr(self.pipe, self.component)

    def without(self) -> AbstractContextManager[None]:
        """A context in which the adapter has no effect."""
        return adapters.scaled(self.model, self.adapter_name, 0.0)


def concepts_of(recipe: Mapping[str, Any], targets: Sequence[str] = ()) -> list[Concept]:
    """What an adapter unlearned by its recipe, or only these targets; ValueError if it did not."""
    recipes = [recipe, *recipe.get("merged", ())]  # a merged adapter unlearned what its parts did
    concepts = [
        concept_from_json(fields) for part in recipes for fields in part.get("concepts", ())
    ]
    if not concepts:
        raise ValueError("the recipe does not say what the adapter unlearned: pass concepts")
    names = [concept.target for concept in concepts]
    for target in targets:
        if target not in names:
            raise ValueError(f"the adapter did not unlearn {target!r}: choose {', '.join(names)}")
    return [concept for concept in concepts if not targets or concept.target in targets]


@contextmanager
def adapter_under_test(pipe: Any, source: FDUnlearner | str | Path) -> Iterator[AdapterUnderTest]:
    """The adapter on the pipe; one from a folder or the Hub is taken off again at the end.

    ValueError if the unlearner has trained nothing, or on another pipe; see also `load_adapter`.
    """
    if isinstance(source, FDUnlearner):
        name = source.adapter_name
        if source.pipe is not pipe:
            raise ValueError("the unlearner is of another pipe: pass unlearner.pipe")
        if name is None or name not in getattr(source.model, "peft_config", {}):
            raise ValueError("the unlearner's adapter is not on the pipe: call unlearn first")
        yield AdapterUnderTest(pipe, source.component, name, source.recipe)
        return
    adapter_file = read_adapter(local_folder(source))
    component, recipe = adapter_file.component, adapter_file.recipe
    model = getattr(pipe, component)
    state_before = adapters.snapshot(model)
    _, name = load_adapter(pipe, source, None, component)
    try:
        digest = sha256(adapter_file.weights_path)
        yield AdapterUnderTest(pipe, component, name, recipe, digest)
    finally:
        adapters.remove(model, name, state_before)
