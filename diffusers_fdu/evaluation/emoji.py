"""Measuring the embedded model: draw, judge, count, as UnlearnCanvas does (arXiv 2402.11846).

A short cut past `evaluate` for whoever holds a pipe and no adapter: benchmarks and `compare`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from ..emoji.classifier import EmojiJudge
from ..emoji.loading import load_emoji_judge
from ..emoji.vocabulary import CONCEPTS, STYLES, caption
from ..pipelines.generate import generate
from .images import Request
from .metrics.accuracy import Judged

Cell = tuple[str, str]  # a concept and a style
DOMAINS = ("object", "style")
DRAWING: dict[str, Any] = {"batch": 32, "num_inference_steps": 25, "guidance_scale": 4.0}
FIRST_SEED = 100


class Verdict(NamedTuple):
    """One drawn picture: what it was to show, and what the judge saw."""

    asked: Cell
    seen: Cell


class Scores(NamedTuple):
    """Unlearning, in-domain retain and cross-domain retain accuracy, see `metrics.accuracy`."""

    ua: float
    ira: float
    cra: float
    images: int


def cells(target: str | None = None) -> list[Cell]:
    """Every concept in every style, or those cells that have this concept or style."""
    every = [(concept, style) for concept in CONCEPTS for style in STYLES]
    return [cell for cell in every if target is None or target in cell]


def draw(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> list[Any]:
    """Draw a picture of each prompt by `generate`, with the options of `DRAWING` by default."""
    return generate(pipe, prompts, seeds, **{**DRAWING, **options})


def judge_cells(
    pipe: Any, judge: EmojiJudge, asked: Sequence[Cell], seeds: Sequence[int], **options: Any
) -> list[Verdict]:
    """Draw every cell with every seed, with the options of `draw`, and have it judged."""
    drawn = [cell for cell in asked for _ in seeds]
    images = draw(pipe, [caption(*cell) for cell in drawn], [*seeds] * len(asked), **options)
    return list(map(Verdict, drawn, judge(images)))


def accuracy(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """The shares of verdicts that are right in concept, and in style."""
    concept, style = (fmean(v.asked[i] == v.seen[i] for v in verdicts) for i in (0, 1))
    return concept, style


def scores(verdicts: Sequence[Verdict], target: str) -> Scores:
    """UA, IRA and CRA for an unlearned concept or style, of cells with and without it."""
    requests, answers = [], []
    for asked, seen in verdicts:
        part = "target" if target in asked else "retain"
        requests.append(Request("", 0, part, dict(zip(DOMAINS, asked, strict=True))))
        answers.append(dict(zip(DOMAINS, seen, strict=True)))
    shares = Judged(requests, answers, domain_of(target)).shares()
    ua, ira, cra = (fmean(shares[name]) for name in ("ua", "ira", "cra"))
    return Scores(ua, ira, cra, len(verdicts))


def domain_of(target: str) -> str:
    """A target's domain, "object" or "style"; ValueError if the embedded model knows neither."""
    for domain, names in zip(DOMAINS, (CONCEPTS, STYLES), strict=True):
        if target in names:
            return domain
    raise ValueError(f"{target!r} is no concept or style of the embedded model")


def measure(
    pipe: Any,
    target: str,
    own_seeds: int | None = None,
    other_seeds: int = 1,
    progress: str = "",
    **options: Any,
) -> Scores:
    """Draw and judge all cells, with the options of `draw`: UA, IRA and CRA of a target.

    Each of the target's cells is drawn with so many seeds, by default 8 for a concept's four cells
    or 2 for a style's 32. `progress` is the occasion, for titles of progress bars; "" shows none.
    """
    own_seeds = own_seeds or {"object": 8, "style": 2}[domain_of(target)]
    judge, own_cells = load_emoji_judge(), cells(target)
    other_cells = [cell for cell in cells() if cell not in own_cells]
    verdicts = []
    parts = ("target", own_cells, own_seeds), ("others", other_cells, other_seeds)
    for name, asked, count in parts:
        title = f"judge {name} {progress}" if progress else None
        seeds = range(FIRST_SEED, FIRST_SEED + count)
        verdicts += judge_cells(pipe, judge, asked, seeds, progress=title, **options)
    return scores(verdicts, target)


@dataclass(frozen=True)
class Tradeoff:
    """A measure of a pipe for `compare`: UA, and the mean of IRA and CRA, see `measure`."""

    target: str
    own_seeds: int | None = None
    other_seeds: int = 1
    num_inference_steps: int = DRAWING["num_inference_steps"]

    def __post_init__(self) -> None:
        domain_of(self.target)

    @property
    def cache_key(self) -> str:
        """The name by which a cache knows this measure."""
        return f"emoji:{self}"

    def __call__(self, pipe: Any) -> tuple[float, float]:
        """UA, and the mean of IRA and CRA."""
        result = measure(pipe, **vars(self))
        return result.ua, (result.ira + result.cra) / 2
