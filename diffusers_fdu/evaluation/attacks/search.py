"""Adversarial prompts: words in front of the target's prompt, or new tokens in its place.

Both searches of words minimise over words w

    E || eps(x_t, c(w + prompt), t) - eps_original(x_t, c(prompt), t) ||^2

on states of the original model's pictures; no classifier takes part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...data.replay_buffer import Entry
from ...pipelines.placeholder_tokens import PlaceholderTokens
from ...pipelines.recorder import Recorder, preserve_pipeline_state
from ...pipelines.tokenizers import PRECEDING_WORD, single_tokens, vocabulary
from ...training.inversion import Inversion
from .attack import AttackOutcome, AttackTarget

Words = tuple[int, ...]
"""Indices into the vocabulary, one for each place."""


class Prefix:
    """Places for `count` words before the target's prompts.

    Args:
        attack_target: the model under attack.
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

    def __init__(self, attack_target: AttackTarget, count: int, seed: int, pictures: int) -> None:
        self.attack_target, self.count = attack_target, count
        asked = attack_target.asked(attack_target.target)
        self.slots = PlaceholderTokens(attack_target.pipe, count, asked)
        self.marked = [f"{PRECEDING_WORD} {self.slots.marker} {prompt}" for prompt in asked]
        known = single_tokens(attack_target.pipe, vocabulary(attack_target.pipe))
        if not known:
            pipeline = type(attack_target.pipe).__name__
            raise ValueError(f"{pipeline} has no whole words of one token to search among")
        self.words = [word for word, _ in known]
        columns = list(zip(*(ids for _, ids in known), strict=True))
        self.tables = [self.slots.embeddings(i, ids) for i, ids in enumerate(columns)]
        self.goal = attack_target.goal(self.marked, seed, pictures)
        self.recorder: Recorder = attack_target.recorder()

    def random(self, generator: torch.Generator) -> Words:
        """Random words."""
        found = torch.randint(len(self.words), (self.count,), generator=generator)
        return tuple(found.tolist())

    def texts(self, vectors: Sequence[Tensor]) -> dict[str, Any]:
        """Conditioning of the marked prompts with these vectors in the slots."""
        return self.slots.conditioning(self.recorder, self.marked, self.goal.names, vectors)

    def loss(self, vectors: Sequence[Tensor], entries: Sequence[Entry]) -> Tensor:
        """Mean over rows, ()."""
        return self.goal.loss(self.attack_target.model, entries, self.texts(vectors)).mean()

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
        asked = self.attack_target.asked(self.attack_target.target)
        return [f"{PRECEDING_WORD} {text} {prompt}" for prompt in asked]


@dataclass(frozen=True)
class PromptSearch:
    """Projected gradient descent on weights of the words for each place.

        z <- project(z - learning_rate sign(grad z)),   z_i on the simplex over the vocabulary

    with the gradient taken at the heaviest words. After Zhang et al., "To Generate or Not?"
    (UnlearnDiffAtk, arXiv 2310.11868), with the original's answer as the goal in place of a
    picture's noise.

    Args:
        words: number of words.
        steps: of gradient descent.
        batch: rows in a step.
        learning_rate: of the sign step, in shares of a word.
        pictures: of the target that it learns from.
    """

    words: int = 3
    steps: int = 40
    batch: int = 16
    learning_rate: float = 0.05
    pictures: int = 16
    name: str = "prompt search"

    @property
    def budget(self) -> Mapping[str, float]:
        """Gradient steps, and rows that the denoiser is asked in all."""
        rows = 2 * self.steps * self.batch
        return {"steps": self.steps, "denoiser_rows": rows, "pictures": self.pictures}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        prefix = Prefix(attack_target, self.words, seed, self.pictures)
        with preserve_pipeline_state(attack_target.pipe):
            found = self.search(prefix, seed)
        return AttackOutcome(
            attack_target.hits(prefix.prompts(found), seed), found=prefix.in_words(found)
        )

    def search(self, prefix: Prefix, seed: int) -> Words:
        """The words with the least loss on held rows among the likeliest of every step."""
        generator = torch.Generator().manual_seed(seed)
        device = prefix.tables[0].device
        size = (self.words, len(prefix.words))
        z = simplex(torch.rand(size, generator=generator)).to(device).requires_grad_()
        held = prefix.goal.drawn(self.batch, generator)
        best, least = prefix.random(generator), float("inf")
        seen: set[Words] = set()
        for _ in range(self.steps):
            with torch.enable_grad():
                entries = prefix.goal.drawn(self.batch, generator)
                heaviest = nn.functional.one_hot(z.argmax(1), z.shape[1]) - z.detach() + z
                loss = prefix.loss([heaviest @ table for table in prefix.tables], entries)
                (gradient,) = torch.autograd.grad(loss, z)
            z = simplex(z.detach() - self.learning_rate * gradient.sign()).requires_grad_()
            words = tuple(z.argmax(1).tolist())
            if words not in seen:
                seen.add(words)
                value = prefix.loss_of(words, held)
                best, least = (words, value) if value < least else (best, least)
        return best


@dataclass(frozen=True)
class GreedySearch:
    """Greedy coordinate descent: of random swaps that the gradient favours, keep the best.

    Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models" (GCG,
    arXiv 2307.15043), on the denoiser's loss.

    Args:
        words: number of words.
        steps: swaps that are made at most.
        batch: rows in a step.
        candidates: swaps tried in a step.
        top: words of each place that the gradient favours most.
        pictures: of the target that it learns from.
    """

    words: int = 3
    steps: int = 20
    batch: int = 8
    candidates: int = 12
    top: int = 32
    pictures: int = 16
    name: str = "greedy prompt search"

    @property
    def budget(self) -> Mapping[str, float]:
        """Steps, and rows that the denoiser is asked in all."""
        rows = self.steps * self.batch * (1 + self.candidates)
        return {"steps": self.steps, "denoiser_rows": rows, "pictures": self.pictures}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        prefix = Prefix(attack_target, self.words, seed, self.pictures)
        with preserve_pipeline_state(attack_target.pipe):
            found = self.search(prefix, seed)
        return AttackOutcome(
            attack_target.hits(prefix.prompts(found), seed), found=prefix.in_words(found)
        )

    def search(self, prefix: Prefix, seed: int) -> Words:
        """The words after the last swap."""
        generator = torch.Generator().manual_seed(seed)
        words = prefix.random(generator)
        entries = prefix.goal.drawn(self.batch, generator)
        least = prefix.loss_of(words, entries)
        for _ in range(self.steps):
            favoured = self._favoured(prefix, words, prefix.goal.drawn(self.batch, generator))
            tried = {self._swapped(words, favoured, generator) for _ in range(self.candidates)}
            values = {swapped: prefix.loss_of(swapped, entries) for swapped in sorted(tried)}
            best = min(values, key=lambda swapped: values[swapped])
            if values[best] < least:
                words, least = best, values[best]
        return words

    def _favoured(self, prefix: Prefix, words: Words, entries: list[Entry]) -> Tensor:
        """Words of each place by the first-order change of the loss, (words, top)."""
        vectors = [table[list(words)].requires_grad_() for table in prefix.tables]
        with torch.enable_grad():
            gradients = torch.autograd.grad(prefix.loss(vectors, entries), vectors)
        change = sum(g @ table.T for g, table in zip(gradients, prefix.tables, strict=True))
        assert torch.is_tensor(change)
        return change.topk(min(self.top, change.shape[1]), largest=False).indices.cpu()

    def _swapped(self, words: Words, favoured: Tensor, generator: torch.Generator) -> Words:
        place, rank = (
            int(torch.randint(size, (), generator=generator)) for size in favoured.shape
        )
        return (*words[:place], int(favoured[place, rank]), *words[place + 1 :])


def simplex(rows: Tensor) -> Tensor:
    """The nearest point of the probability simplex to each row, (N, V).

    Sort-based projection (Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008).
    """
    ordered = rows.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (ordered * count > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, last - 1) / last
    return (rows - threshold).clamp(min=0)


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

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        generator = torch.Generator().manual_seed(seed)
        slots = PlaceholderTokens(
            attack_target.pipe, self.tokens, attack_target.asked(attack_target.target)
        )
        slots.start_at_random_word(generator)
        marked = attack_target.asked(slots.marker)
        goal = attack_target.goal(marked, seed, self.pictures)
        with preserve_pipeline_state(attack_target.pipe):
            vectors = self.inversion(
                attack_target.model, slots, attack_target.recorder(), marked, goal, generator
            )
        with slots.substituted(vectors):
            return AttackOutcome(attack_target.hits(marked, seed))
