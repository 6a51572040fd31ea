"""Adversarial prompts: words in front of the target's prompt, or new tokens in its place.

Both searches of words minimise over words w

    E || eps(x_t, c(w + prompt), t) - eps_original(x_t, c(prompt), t) ||^2

on states of the original model's pictures; no classifier takes part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.replay_buffer import Entry
from ...pipelines.placeholder_tokens import PlaceholderTokens
from ...pipelines.recorder import preserve_pipeline_state
from ...pipelines.tokenizers import PRECEDING_WORD, single_tokens, vocabulary
from ...training.inversion import Inversion
from .attack import AttackOutcome, AttackTarget

Words = tuple[int, ...]  # indices into the vocabulary, one for each place


class Prefix:
    """Places for `count` words before the target's prompts.

    Attributes:
        words: the vocabulary: every whole word that is one token.
        tables: their embeddings, (len(words), width) for each text encoder, float32.
        marked: the target's prompts with the slots' marker before them.
    """

    def __init__(self, victim: AttackTarget, count: int, seed: int, pictures: int) -> None:
        self.victim, self.count = victim, count
        self.slots = PlaceholderTokens(victim.pipe, count, victim.prompts)
        self.marked = self._prompts(self.slots.marker)
        tokens = single_tokens(victim.pipe, vocabulary(victim.pipe))
        if not tokens:
            pipeline = type(victim.pipe).__name__
            raise ValueError(f"{pipeline} has no whole words of one token to search among")
        self.words = [word for word, _ in tokens]
        ids_by_encoder = zip(*(ids for _, ids in tokens), strict=True)
        self.tables = [self.slots.embeddings(i, ids) for i, ids in enumerate(ids_by_encoder)]
        self.goal = victim.goal(self.marked, seed, pictures)
        self.recorder = victim.recorder()

    def random(self, generator: torch.Generator) -> Words:
        """Random words."""
        indices = torch.randint(len(self.words), (self.count,), generator=generator)
        return tuple(indices.tolist())

    def loss(self, vectors: Sequence[Tensor], entries: Sequence[Entry]) -> Tensor:
        """The mean loss over rows, (), with these vectors in the slots."""
        names = self.goal.names
        texts = self.slots.conditioning(self.recorder, self.marked, names, vectors)
        return self.goal.loss(self.victim.model, entries, texts).mean()

    @torch.no_grad()
    def loss_of(self, words: Words, entries: Sequence[Entry]) -> float:
        """The mean loss over rows with these words in the slots."""
        return self.loss([table[list(words)] for table in self.tables], entries).item()

    def in_words(self, words: Words) -> str:
        """The words as text."""
        return " ".join(self.words[index] for index in words)

    def prompts(self, words: Words) -> list[str]:
        """The target's prompts with these words before them: plain text, which anyone may type."""
        return self._prompts(self.in_words(words))

    def _prompts(self, text: str) -> list[str]:
        return [f"{PRECEDING_WORD} {text} {prompt}" for prompt in self.victim.prompts]


@dataclass(frozen=True)
class PromptSearch:
    """Projected gradient descent on weights of the words for each place.

        z <- project(z - learning_rate sign(grad z)),   z_i on the simplex over the vocabulary

    with the gradient taken at the heaviest words. After Zhang et al., "To Generate or Not?"
    (UnlearnDiffAtk, arXiv 2310.11868), with the original's answer as the goal in place of a
    picture's noise. The learning rate is in shares of a word; `batch` rows are asked in a step,
    from so many `pictures` of the target.
    """

    words: int = 3
    steps: int = 40
    batch: int = 16
    learning_rate: float = 0.05
    pictures: int = 16
    name: str = "prompt search"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        # A step asks its rows for the gradient, and as many for the loss of new words.
        return _attack_by_words(self, victim, seed, 2 * self.steps * self.batch)

    def search(self, prefix: Prefix, seed: int) -> Words:
        """The words with the least loss on held-out rows among the likeliest of every step."""
        generator = torch.Generator().manual_seed(seed)
        device = prefix.tables[0].device
        size = (self.words, len(prefix.words))
        z = simplex(torch.rand(size, generator=generator)).to(device).requires_grad_()
        held_out = prefix.goal.drawn(self.batch, generator)
        best, least = prefix.random(generator), float("inf")
        seen: set[Words] = set()
        for _ in range(self.steps):
            with torch.enable_grad():
                entries = prefix.goal.drawn(self.batch, generator)
                # Straight-through: one-hot forward, the gradient as if it were z.
                heaviest = nn.functional.one_hot(z.argmax(1), z.shape[1]) - z.detach() + z
                loss = prefix.loss([heaviest @ table for table in prefix.tables], entries)
                (gradient,) = torch.autograd.grad(loss, z)
            z = simplex(z.detach() - self.learning_rate * gradient.sign()).requires_grad_()
            words = tuple(z.argmax(1).tolist())
            if words not in seen:
                seen.add(words)
                value = prefix.loss_of(words, held_out)
                best, least = (words, value) if value < least else (best, least)
        return best


@dataclass(frozen=True)
class GreedySearch:
    """Greedy coordinate descent: of random swaps that the gradient favours, keep the best.

    Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models" (GCG,
    arXiv 2307.15043), on the denoiser's loss. A step tries so many `candidates`, swaps to one of
    the `top` words of a place that the gradient favours most, each on `batch` rows.
    """

    words: int = 3
    steps: int = 20
    batch: int = 8
    candidates: int = 12
    top: int = 32
    pictures: int = 16
    name: str = "greedy prompt search"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        rows = self.steps * self.batch * (1 + self.candidates)
        return _attack_by_words(self, victim, seed, rows)

    def search(self, prefix: Prefix, seed: int) -> Words:
        """The words after the last swap."""
        generator = torch.Generator().manual_seed(seed)
        words = prefix.random(generator)
        entries = prefix.goal.drawn(self.batch, generator)
        least = prefix.loss_of(words, entries)
        for _ in range(self.steps):
            favoured = self._favoured(prefix, words, prefix.goal.drawn(self.batch, generator))
            tried = {_swapped(words, favoured, generator) for _ in range(self.candidates)}
            losses = {candidate: prefix.loss_of(candidate, entries) for candidate in sorted(tried)}
            best = min(losses, key=lambda candidate: losses[candidate])
            if losses[best] < least:
                words, least = best, losses[best]
        return words

    def _favoured(self, prefix: Prefix, words: Words, entries: list[Entry]) -> Tensor:
        """Words of each place by the first-order change of the loss, (words, top)."""
        vectors = [table[list(words)].requires_grad_() for table in prefix.tables]
        with torch.enable_grad():
            gradients = torch.autograd.grad(prefix.loss(vectors, entries), vectors)
        pairs = zip(gradients, prefix.tables, strict=True)
        change = torch.stack([gradient @ table.T for gradient, table in pairs]).sum(0)
        return change.topk(min(self.top, change.shape[1]), largest=False).indices.cpu()


def _swapped(words: Words, favoured: Tensor, generator: torch.Generator) -> Words:
    place, rank = (int(torch.randint(size, (), generator=generator)) for size in favoured.shape)
    return (*words[:place], int(favoured[place, rank]), *words[place + 1 :])


def _attack_by_words(
    search: PromptSearch | GreedySearch, victim: AttackTarget, seed: int, rows: int
) -> AttackOutcome:
    """The outcome of a search that asks the denoiser so many rows."""
    prefix = Prefix(victim, search.words, seed, search.pictures)
    with preserve_pipeline_state(victim.pipe):
        words = search.search(prefix, seed)
    budget = {"steps": search.steps, "denoiser_rows": rows, "pictures": search.pictures}
    hits = victim.hits(prefix.prompts(words), seed)
    return AttackOutcome(hits, found=prefix.in_words(words), budget=budget)


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
    """Learns the embeddings of so many new `tokens`, from `pictures` of the target.

    See `training.inversion` for the objective and its source.
    """

    inversion: Inversion = Inversion()
    tokens: int = 1
    pictures: int = 32
    name: str = "concept inversion"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        generator = torch.Generator().manual_seed(seed)
        slots = PlaceholderTokens(victim.pipe, self.tokens, victim.prompts)
        slots.start_at_random_word(generator)
        marked = victim.prompts_for(slots.marker)
        goal = victim.goal(marked, seed, self.pictures)
        with preserve_pipeline_state(victim.pipe):
            vectors = self.inversion(
                victim.model, slots, victim.recorder(), marked, goal, generator
            )
        steps, rows = self.inversion.steps, self.inversion.steps * self.inversion.batch
        budget = {"steps": steps, "denoiser_rows": rows, "pictures": self.pictures}
        with slots.substituted(vectors):
            return AttackOutcome(victim.hits(marked, seed), budget=budget)
