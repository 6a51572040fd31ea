"""Measuring the embedded model: draw, judge, count, as UnlearnCanvas does (arXiv 2402.11846)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from ..emoji.classifier import EmojiJudge
from ..emoji.loading import load_emoji_judge
from ..emoji.vocabulary import CONCEPTS, STYLES, caption
from ..pipelines.generate import generate
from .metrics.accuracy import Judged
from .request import Request

Cell = tuple[str, str]
"""A concept and a style."""
DOMAINS = ("object", "style")
DRAWING: dict[str, Any] = {"batch": 32, "num_inference_steps": 25, "guidance_scale": 4.0}
"""How pictures of the embedded model are drawn, if nothing else is said."""
FIRST_SEED = 100


class Verdict(NamedTuple):
    """One drawn picture: what was asked for, and what the judge saw."""

    asked: Cell
    seen: Cell


class Scores(NamedTuple):
    """Unlearning, in-domain retain and cross-domain retain accuracy, see `metrics.accuracy`."""

    ua: float
    ira: float
    cra: float
    images: int


def cells(target: str | None = None) -> list[Cell]:
    """Every concept in every style.

    Args:
        target: a concept or style, whose cells alone are wanted; None: all.
    """
    found = [(concept, style) for concept in CONCEPTS for style in STYLES]
    return [cell for cell in found if target is None or target in cell]


def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> list[Any]:
    """Draw pictures by `generate`, as `DRAWING` has it.

    Args:
        pipe: the embedded pipeline.
        prompts: what to draw.
        seeds: seeds of the initial noise, as many.
        **options: see `generate`.
    """
    return generate(pipe, prompts, seeds, **{**DRAWING, **options})


def judge_cells(
    pipe: Any, judge: EmojiJudge, asked: Sequence[Cell], seeds: Sequence[int], **options: Any
) -> list[Verdict]:
    """Draw every cell with every seed, and have it judged.

    Args:
        pipe: the embedded pipeline.
        judge: its judge.
        asked: (concept, style) pairs.
        seeds: each cell is drawn once with each of them.
        **options: see `draw`.
    """
    wanted = [cell for cell in asked for _ in seeds]
    images = draw(pipe, [caption(*cell) for cell in wanted], [*seeds] * len(asked), **options)
    return list(map(Verdict, wanted, judge(images)))


def accuracy(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Share of verdicts right in concept, and in style."""
    concept, style = (fmean(v.asked[i] == v.seen[i] for v in verdicts) for i in (0, 1))
    return concept, style


def scores(verdicts: Sequence[Verdict], target: str) -> Scores:
    """UA, IRA and CRA for an unlearned concept or style.

    Args:
        verdicts: over cells with and without the target.
        target: one of `CONCEPTS` or `STYLES`.

    Raises:
        ValueError: if the target is neither.
    """
    domain = DOMAINS[place_of(target)]
    requests, answers = [], []
    for asked, seen in verdicts:
        part = "target" if target in asked else "retain"
        requests.append(Request("", 0, part, dict(zip(DOMAINS, asked, strict=True))))
        answers.append(dict(zip(DOMAINS, seen, strict=True)))
    shares = Judged(requests, answers, [target], domain).shares()
    ua, ira, cra = (fmean(shares[name]) for name in ("ua", "ira", "cra"))
    return Scores(ua, ira, cra, len(verdicts))


def place_of(target: str) -> int:
    """Where cells name the target: 0 for a concept, 1 for a style.

    Raises:
        ValueError: if the embedded model knows neither.
    """
    for place, names in enumerate((CONCEPTS, STYLES)):
        if target in names:
            return place
    raise ValueError(f"{target!r} is no concept or style of the embedded model")


def measure(
    pipe: Any,
    target: str,
    own_seeds: int | None = None,
    other_seeds: int = 1,
    progress: str = "",
    **options: Any,
) -> Scores:
    """Draw and judge all cells: UA, IRA and CRA of the embedded model.

    Args:
        pipe: the embedded pipeline.
        target: one of `CONCEPTS` or `STYLES`.
        own_seeds: pictures of each of the target's cells; None: 8 of a concept's four, 2 of a
            style's 32.
        other_seeds: pictures of each other cell.
        progress: when it is measured, for the titles of progress bars; "": no bars.
        **options: see `draw`.

    Raises:
        ValueError: if the target is neither.
    """
    default = (8, 2)[place_of(target)]
    judge, own = load_emoji_judge(), cells(target)
    rest = [cell for cell in cells() if cell not in own]
    verdicts = []
    for name, asked, count in (
        ("target", own, own_seeds or default),
        ("others", rest, other_seeds),
    ):
        title = f"judge {name} {progress}" if progress else None
        seeds = range(FIRST_SEED, FIRST_SEED + count)
        verdicts += judge_cells(pipe, judge, asked, seeds, progress=title, **options)
    return scores(verdicts, target)


@dataclass(frozen=True)
class Tradeoff:
    """A measure of a pipe for `compare`: UA, and the mean of IRA and CRA.

    Args:
        target: one of `CONCEPTS` or `STYLES`.
        own_seeds: see `measure`.
        other_seeds: see `measure`.
        num_inference_steps: of each picture.

    Raises:
        ValueError: if the target is neither.
    """

    target: str
    own_seeds: int | None = None
    other_seeds: int = 1
    num_inference_steps: int = DRAWING["num_inference_steps"]

    def __post_init__(self) -> None:
        place_of(self.target)

    @property
    def cache_key(self) -> str:
        """What a cache knows this measure by."""
        return f"emoji:{self}"

    def __call__(self, pipe: Any) -> tuple[float, float]:
        """UA, and the mean of IRA and CRA."""
        found = measure(pipe, **vars(self))
        return found.ua, (found.ira + found.cra) / 2
