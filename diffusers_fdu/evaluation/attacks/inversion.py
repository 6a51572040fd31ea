"""Concept inversion: a token embedding that brings the concept back.

    v* = argmin_v E || eps(x_t, c(v), t) - eps_original(x_t, c(target), t) ||^2

over states of the original model's pictures of the target. Pham et al., "Circumventing Concept
Erasure Methods For Text-to-Image Generative Models" (arXiv 2308.01508), with the original's answer
in place of the noise that was added: the same minimum in expectation, with less variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...recorder import untouched
from ...slots import Slots, single_tokens
from ...words import vocabulary
from .outcome import Outcome
from .scene import Scene, Source


@dataclass(frozen=True)
class ConceptInversion:
    """Learns the embedding of new tokens.

    Args:
        steps: of Adam.
        batch: rows in a step.
        learning_rate: peak, in standard deviations of the embedding table; falls to 0 linearly.
        tokens: how many.
        pictures: of the target that it learns from.
    """

    steps: int = 100
    batch: int = 16
    learning_rate: float = 0.3
    tokens: int = 1
    pictures: int = 32
    name: str = "concept inversion"

    @property
    def budget(self) -> Mapping[str, float]:
        """Gradient steps, and rows that the denoiser is asked in them."""
        rows = self.steps * self.batch
        return {"steps": self.steps, "denoiser_rows": rows, "pictures": self.pictures}

    def __call__(self, scene: Scene, seed: int) -> Outcome:
        """See `Attack`."""
        slots = Slots(scene.pipe, self.tokens, scene.asked(scene.target))
        marked = scene.asked(slots.marker)
        source = scene.source(marked, seed, self.pictures)
        start_at_a_word(slots, scene, seed)
        with untouched(scene.pipe):
            vectors = self.invert(slots, scene, source, seed)
        with slots.placed(vectors):
            return Outcome(scene.hits(marked, seed))

    def invert(self, slots: Slots, scene: Scene, source: Source, seed: int) -> list[Tensor]:
        """The vectors that come nearest to the original's answers."""
        generator = torch.Generator().manual_seed(seed)
        recorder, marked = scene.recorder(), scene.asked(slots.marker)
        vectors = [own.clone().requires_grad_() for own in slots.vectors]
        groups: list[dict[str, Any]] = [
            {"params": [v], "lr": self.learning_rate * slots.spread(i)}
            for i, v in enumerate(vectors)
        ]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                texts = slots.conditioning(recorder, marked, source.names, vectors)
                entries = source.drawn(self.batch, generator)
                loss = source.loss(scene.model, entries, texts).mean()
                gradients = torch.autograd.grad(loss, vectors)
                for vector, gradient in zip(vectors, gradients, strict=True):
                    vector.grad = gradient
                optimizer.step()
                schedule.step()
        return [vector.detach() for vector in vectors]


def start_at_a_word(slots: Slots, scene: Scene, seed: int) -> None:
    """Let the vectors begin as those of a random word that is no part of the target's prompts."""
    generator = torch.Generator().manual_seed(seed)
    words = single_tokens(scene.pipe, vocabulary(scene.pipe))
    asked = " ".join(scene.asked(scene.target)).lower().split()
    free = [ids for word, ids in words if word not in asked]
    ids = free[int(torch.randint(len(free), (), generator=generator))]
    slots.vectors = [slots.table(i, [token] * slots.count) for i, token in enumerate(ids)]
