"""Measuring the embedded model: draw, judge, count, as UnlearnCanvas does (arXiv 2402.11846)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL.Image import Image
from tqdm.auto import tqdm

from .classifier import EmojiJudge
from .loading import load_emoji_judge
from .vocabulary import CONCEPTS, STYLES, caption

Cell = tuple[str, str]
BATCH = 32


@dataclass(frozen=True)
class Verdict:
    """One drawn picture: what was asked for, and what the judge saw."""

    asked: Cell
    seen: Cell


@dataclass(frozen=True)
class Scores:
    """Accuracies of UnlearnCanvas.

    Args:
        ua: unlearning accuracy: share of the target's pictures that are not judged the target.
        ira: in-domain retain accuracy: share right among the other concepts when a concept is
            unlearned (the other styles when a style is).
        cra: cross-domain retain accuracy: share whose style is right, among the pictures of the
            other concepts, when a concept is unlearned (whose concept is right when a style is).
        images: number of pictures judged.
    """

    ua: float
    ira: float
    cra: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """The scores as JSON types."""
        return asdict(self)


def cells() -> list[Cell]:
    """Every concept in every style."""
    return [(concept, style) for concept in CONCEPTS for style in STYLES]


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int = 25,
    guidance_scale: float = 4.0,
    progress: str | None = None,
) -> list[Image]:
    """Pictures of prompts, one a seed.

    Args:
        pipe: the embedded pipeline.
        prompts: what to draw.
        seeds: of the initial noise, as many as prompts.
        num_inference_steps: DDIM steps.
        guidance_scale: of classifier-free guidance.
        progress: title of a progress bar; None: no bar.
    """
    pipe.set_progress_bar_config(disable=True)
    images: list[Image] = []
    for i in tqdm(range(0, len(prompts), BATCH), desc=progress, disable=progress is None):
        images += pipe(
            list(prompts[i : i + BATCH]),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(s) for s in seeds[i : i + BATCH]],
        ).images
    return images


def judge_cells(
    pipe: Any,
    judge: EmojiJudge,
    asked: Sequence[Cell],
    seeds: Sequence[int],
    progress: str | None = None,
    **kwargs: Any,
) -> list[Verdict]:
    """Draw every cell with every seed, and have it judged.

    Args:
        pipe: the embedded pipeline.
        judge: its judge.
        asked: (concept, style) pairs.
        seeds: each cell is drawn once a seed.
        progress: title of a progress bar; None: no bar.
        **kwargs: passed to `draw`.
    """
    wanted = [cell for cell in asked for _ in seeds]
    prompts = [caption(*cell) for cell in wanted]
    images = draw(pipe, prompts, [*seeds] * len(asked), progress=progress, **kwargs)
    return [Verdict(a, s) for a, s in zip(wanted, judge(images), strict=True)]


def accuracy(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Share of verdicts right in concept, and in style."""
    total = len(verdicts)
    concept = sum(v.asked[0] == v.seen[0] for v in verdicts)
    style = sum(v.asked[1] == v.seen[1] for v in verdicts)
    return concept / total, style / total


def scores(verdicts: Sequence[Verdict], target: str) -> Scores:
    """UA, IRA and CRA for an unlearned concept or style.

    Args:
        verdicts: over cells with and without the target.
        target: one of `CONCEPTS` or `STYLES`.

    Raises:
        ValueError: if the target is neither.
    """
    if target in CONCEPTS:
        own, cross = 0, 1
    elif target in STYLES:
        own, cross = 1, 0
    else:
        raise ValueError(f"{target!r} is no concept or style of the embedded model")
    erased = [v for v in verdicts if v.asked[own] == target]
    kept = [v for v in verdicts if v.asked[own] != target]
    return Scores(
        ua=1 - sum(v.seen[own] == target for v in erased) / len(erased),
        ira=sum(v.seen[own] == v.asked[own] for v in kept) / len(kept),
        cra=sum(v.seen[cross] == v.asked[cross] for v in kept) / len(kept),
        images=len(verdicts),
    )


def tradeoff(target: str, own_seeds: int = 8, other_seeds: int = 1, **kwargs: Any) -> Tradeoff:
    """A measure of a pipe for `compare`: UA, and the mean of IRA and CRA.

    Args:
        target: one of `CONCEPTS` or `STYLES`.
        own_seeds: pictures of each of the target's cells; a quarter of it for a style.
        other_seeds: pictures of each other cell.
        **kwargs: passed to `draw`.

    Raises:
        ValueError: if the target is neither.
    """
    if target not in (*CONCEPTS, *STYLES):
        raise ValueError(f"{target!r} is no concept or style of the embedded model")
    count = own_seeds if target in CONCEPTS else max(1, own_seeds // 4)
    return Tradeoff(target, count, other_seeds, kwargs)


@dataclass(frozen=True)
class Tradeoff:
    """See `tradeoff`."""

    target: str
    own_seeds: int
    other_seeds: int
    kwargs: dict[str, Any]

    @property
    def cache_key(self) -> str:
        """What a cache knows this measure by."""
        return f"emoji:{asdict(self)}"

    def __call__(self, pipe: Any) -> tuple[float, float]:
        """UA, and the mean of IRA and CRA."""
        judge = load_emoji_judge()
        own = [cell for cell in cells() if self.target in cell]
        rest = [cell for cell in cells() if self.target not in cell]
        first = 100
        seeds = range(first, first + self.own_seeds), range(first, first + self.other_seeds)
        verdicts = judge_cells(pipe, judge, own, seeds[0], **self.kwargs)
        verdicts += judge_cells(pipe, judge, rest, seeds[1], **self.kwargs)
        found = scores(verdicts, self.target)
        return found.ua, (found.ira + found.cra) / 2
