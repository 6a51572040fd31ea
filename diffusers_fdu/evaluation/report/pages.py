"""An evaluation as a page: in Markdown, and as HTML without scripts or anything to load."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

from PIL.Image import Image, Resampling

from ...adapters.evaluation_file import Metric, MetricReport, interval
from ...adapters.summary import rows
from ...utils.markup import cleaned, render
from ..result import Evaluation

SIDE = 192
"""The largest side of a shown picture, in pixels."""
SHOWN = 12
"""The largest number of pairs shown of a part."""
PARTS = {
    "target": "What is forgotten",
    "synonyms": "Other words for it",
    "paraphrases": "Other prompts for it",
    "anchor": "What takes its place",
    "retain": "What should stay",
}


class Pair(NamedTuple):
    """A picture without the adapter and with it, as data URLs."""

    prompt: str
    seed: int
    before: str
    after: str


class Part(NamedTuple):
    """Some pairs of a part of the protocol, and of how many pictures they are."""

    title: str
    total: int
    pairs: list[Pair]


def to_html(evaluation: Evaluation) -> str:
    """The page, with pictures if the evaluation has them."""
    parts = _parts(evaluation)
    return render("evaluation/report/page.html", **_content(evaluation), parts=parts)


def to_markdown(evaluation: Evaluation) -> str:
    """The page without pictures."""
    return render("evaluation/report/page.md", **_content(evaluation))


def _content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "title": ", ".join(map(cleaned, evaluation.targets)),
        "headline": _headline(evaluation),
        "figures": [MetricReport(*item) for item in evaluation.metrics.items()],
        "attacks": evaluation.attacks,
        "about": _about(evaluation),
        "recipe": rows(evaluation.recipe),
        "interval": interval,
        "percent": "{:.0%}".format,
    }


def _headline(evaluation: Evaluation) -> str:
    """What was measured, in a sentence."""
    targets = " and ".join(f'"{cleaned(target)}"' for target in evaluation.targets)
    metrics, clauses = evaluation.metrics, []
    if (ua := metrics.get("ua")) is not None:
        verb, whose = ("is", "its") if len(evaluation.targets) == 1 else ("are", "their")
        clauses.append(f"{targets} {verb} gone from {_with_bounds(ua)} of {whose} pictures")
    if (ira := metrics.get("ira")) is not None:
        clauses.append(f"{_with_bounds(ira)} of the others are still right")
    return "; ".join(clauses) + "." if clauses else f"{targets}: nothing was judged."


def _about(evaluation: Evaluation) -> list[str]:
    """How it was measured, in lines."""
    settings = ", ".join(f"{key} {cleaned(value)}" for key, value in evaluation.settings.items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in evaluation.seconds.items())
    versions = ", ".join(f"{name} {cleaned(v)}" for name, v in evaluation.versions.items())
    lines = [
        evaluation.about,
        f"{evaluation.images} pictures, as many before",
        f"judge: {evaluation.judge}",
        f"settings: {settings}" if settings else "",
        "intervals: 95 %, bootstrap over pictures as if they were independent",
        *(f"left out: {reason}" for reason in evaluation.left_out),
        f"time: {seconds}" if seconds else "",
        f"versions: {versions}" if versions else "",
        f"weights: SHA-256 {evaluation.weights_sha256}" if evaluation.weights_sha256 else "",
    ]
    return [line for line in lines if line]


def _with_bounds(metric: Metric) -> str:
    bounds = interval(metric, ".0%")
    return f"{metric.value:.0%}" + (f" ({bounds})" if bounds else "")


def _parts(evaluation: Evaluation) -> list[Part]:
    """The protocol's parts, those that `PARTS` does not know last."""
    if evaluation.before is None or evaluation.after is None:
        return []
    parts = []
    drawn = dict.fromkeys(request.part for request in evaluation.after.requests)
    for name in [
        *(part for part in PARTS if part in drawn),
        *(p for p in drawn if p not in PARTS),
    ]:
        before, after = evaluation.before.of(name), evaluation.after.of(name)
        total = len(after.images)
        pairs = []
        for shown in range(min(SHOWN, total)):
            i = shown * total // min(SHOWN, total)  # spread over the part, ordered by name
            request = after.requests[i]
            urls = _data_url(before.images[i]), _data_url(after.images[i])
            pairs.append(Pair(request.prompt, request.seed, *urls))
        parts.append(Part(PARTS.get(name, name), total, pairs))
    return parts


def _data_url(image: Image) -> str:
    small = image.convert("RGB")
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
