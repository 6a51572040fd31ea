"""An evaluation as a page: in Markdown, and as HTML without scripts or anything to load."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL.Image import Image, Resampling

from ...adapters.evaluation_file import Metric, interval, metric_report
from ...adapters.summary import recipe_rows
from ...utils.markup import cleaned, render
from ..result import Evaluation

SIDE = 192
"""Pixels of a shown picture at most."""
SHOWN = 12
"""Pairs of each part."""
PARTS = {
    "target": "What is forgotten",
    "synonyms": "Other words for it",
    "paraphrases": "Other prompts for it",
    "anchor": "What takes its place",
    "retain": "What should stay",
}


class Pair(NamedTuple):
    """A picture without the adapter and with it, as addresses that hold them."""

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
    parts = list(_parts(evaluation))
    return render("evaluation/report/page.html", **_content(evaluation), parts=parts)


def to_markdown(evaluation: Evaluation) -> str:
    """The page without pictures."""
    return render("evaluation/report/page.md", **_content(evaluation))


def _content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "title": ", ".join(map(cleaned, evaluation.targets)),
        "headline": headline(evaluation),
        "figures": [metric_report(*item) for item in evaluation.metrics.items()],
        "attacks": evaluation.attacks,
        "about": about(evaluation),
        "recipe": recipe_rows(evaluation.recipe),
        "interval": interval,
        "percent": "{:.0%}".format,
    }


def headline(evaluation: Evaluation) -> str:
    """What was found, in a sentence of measured numbers."""
    targets = " and ".join(f'"{cleaned(target)}"' for target in evaluation.targets)
    metrics, parts = evaluation.metrics, []
    if (ua := metrics.get("ua")) is not None:
        verb, whose = ("is", "its") if len(evaluation.targets) == 1 else ("are", "their")
        parts.append(f"{targets} {verb} gone from {_bounded(ua)} of {whose} pictures")
    if (ira := metrics.get("ira")) is not None:
        parts.append(f"{_bounded(ira)} of the others are still right")
    return "; ".join(parts) + "." if parts else f"{targets}: nothing was judged."


def about(evaluation: Evaluation) -> list[str]:
    """How it was measured."""
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


def _bounded(metric: Metric) -> str:
    bounds = interval(metric, ".0%")
    return f"{metric.value:.0%}" + (f" ({bounds})" if bounds else "")


def _parts(evaluation: Evaluation) -> Iterator[Part]:
    if evaluation.before is None or evaluation.after is None:
        return
    known = dict.fromkeys(request.part for request in evaluation.after.requests)
    for name in sorted(known, key=lambda name: list(PARTS).index(name) if name in PARTS else 99):
        before, after = evaluation.before.of(name), evaluation.after.of(name)
        total = len(after.images)
        # Spread over the part, which is ordered by name.
        places = [i * total // min(SHOWN, total) for i in range(min(SHOWN, total))]
        pairs = [
            Pair(request.prompt, request.seed, _data(before.images[i]), _data(after.images[i]))
            for i in places
            for request in (after.requests[i],)
        ]
        yield Part(PARTS.get(name, name), total, pairs)


def _data(image: Image) -> str:
    small = image.convert("RGB")
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
