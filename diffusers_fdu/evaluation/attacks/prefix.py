"""Words in front of a prompt, and how well they bring the concept back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.replay_buffer import Entry
from ...pipelines.placeholder_tokens import Slots
from ...pipelines.recorder import Recorder
from ...pipelines.tokenizers import BEFORE, single_tokens, vocabulary
from .scene import Scene

Words = tuple[int, ...]
"""Indices into the vocabulary, one for each place."""


class Prefix:
    """Places for `count` words before the target's prompts.

    Args:
        scene: what is attacked.
        count: number of words.
        seed: of the original's pictures.
        pictures: how many of them are drawn.

    Raises:
        ValueError: if there is no vocabulary to search.

    Attributes:
        words: the vocabulary: every whole word that is one token.
        tables: their embeddings, (len(words), width) for each text encoder, float32.
        marked: the target's prompts with the slots' marker before them.
    """

    def __init__(self, scene: Scene, count: int, seed: int, pictures: int) -> None:
        self.scene, self.count = scene, count
        asked = scene.asked(scene.target)
        self.slots = Slots(scene.pipe, count, asked)
        self.marked = [f"{BEFORE} {self.slots.marker} {prompt}" for prompt in asked]
        known = single_tokens(scene.pipe, vocabulary(scene.pipe))
        if not known:
            raise ValueError(
                f"{type(scene.pipe).__name__} has no whole words of one token to search among"
            )
        self.words = [word for word, _ in known]
        columns = list(zip(*(ids for _, ids in known), strict=True))
        self.tables = [self.slots.table(i, ids) for i, ids in enumerate(columns)]
        self.goal = scene.goal(self.marked, seed, pictures)
        self.recorder: Recorder = scene.recorder()

    def random(self, generator: torch.Generator) -> Words:
        """Random words."""
        found = torch.randint(len(self.words), (self.count,), generator=generator)
        return tuple(found.tolist())

    def texts(self, vectors: Sequence[Tensor]) -> dict[str, Any]:
        """Conditioning of the marked prompts with these vectors in the slots."""
        return self.slots.conditioning(self.recorder, self.marked, self.goal.names, vectors)

    def loss(self, vectors: Sequence[Tensor], entries: Sequence[Entry]) -> Tensor:
        """Mean over rows, ()."""
        return self.goal.loss(self.scene.model, entries, self.texts(vectors)).mean()

    @torch.no_grad()
    def loss_of(self, words: Words, entries: Sequence[Entry]) -> float:
        """The same for words of the vocabulary."""
        return self.loss([table[list(words)] for table in self.tables], entries).item()

    def in_words(self, words: Words) -> str:
        """As text."""
        return " ".join(self.words[index] for index in words)

    def prompts(self, words: Words) -> list[str]:
        """The target's prompts with these words before them: plain text, which anyone may type."""
        text = self.in_words(words)
        asked = self.scene.asked(self.scene.target)
        return [f"{BEFORE} {text} {prompt}" for prompt in asked]
