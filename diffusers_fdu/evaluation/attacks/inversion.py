"""Concept inversion against an unlearned model, see `diffusers_fdu.inversion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...pipelines.placeholder_tokens import Slots
from ...pipelines.recorder import untouched
from ...training.inversion import Inversion
from .outcome import Outcome
from .scene import Scene


@dataclass(frozen=True)
class ConceptInversion:
    """Learns the embedding of new tokens that bring the concept back.

    Args:
        inversion: how.
        tokens: how many.
        pictures: of the target that it learns from.
    """

    inversion: Inversion = Inversion()
    tokens: int = 1
    pictures: int = 32
    name: str = "concept inversion"

    @property
    def budget(self) -> Mapping[str, float]:
        """Gradient steps, and rows that the denoiser is asked in them."""
        steps, rows = self.inversion.steps, self.inversion.steps * self.inversion.batch
        return {"steps": steps, "denoiser_rows": rows, "pictures": self.pictures}

    def __call__(self, scene: Scene, seed: int) -> Outcome:
        """See `Attack`."""
        generator = torch.Generator().manual_seed(seed)
        slots = Slots(scene.pipe, self.tokens, scene.asked(scene.target))
        slots.start_at_a_word(generator)
        marked = scene.asked(slots.marker)
        goal = scene.goal(marked, seed, self.pictures)
        with untouched(scene.pipe):
            vectors = self.inversion(scene.model, slots, scene.recorder(), marked, goal, generator)
        with slots.placed(vectors):
            return Outcome(scene.hits(marked, seed))
