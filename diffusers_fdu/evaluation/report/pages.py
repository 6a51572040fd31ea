"""An evaluation as pages: in Markdown, and as HTML without scripts or anything to load."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL.Image import Image, Resampling

from ...adapters.evaluation_file import Metric, interval, metric_report, write_evaluation
from ...adapters.summary import recipe_rows
from ...utils.io import writable_folder, write_text
from ...utils.markup import cleaned, render
from ..result import Evaluation, to_json

SIDE = 192  # pixels of a shown picture's larger side, at most
SHOWN = 12  # pairs shown of a part, at most
PARTS = {
    "target": "What is forgotten",
    "synonyms": "Other words for it",
    "paraphrases": "Other prompts for it",
    "anchor": "What takes its place",
    "retain": "What should stay",
}


def write_report(evaluation: Evaluation, directory: str | Path) -> Path:
    """Write `evaluation.json`, `report.md` and `report.html`; returns the folder."""
    folder = writable_folder(directory)
    write_evaluation(to_json(evaluation), folder)
    write_text(folder / "report.md", to_markdown(evaluation))
    write_text(folder / "report.html", to_html(evaluation))
    return folder


def to_html(evaluation: Evaluation) -> str:
    """The page, with pictures if the evaluation has them."""
    content = {**_content(evaluation), "parts": _parts(evaluation)}
    return render("evaluation/report/page.html", **content)


def to_markdown(evaluation: Evaluation) -> str:
    """The page without pictures."""
    return render("evaluation/report/page.md", **_content(evaluation))


def _content(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "title": ", ".join(map(cleaned, evaluation.targets)),
        "headline": _headline(evaluation),
        "metrics": [metric_report(*item) for item in evaluation.metrics.items()],
        "attacks": evaluation.attacks,
        "about": _about(evaluation),
        "recipe": recipe_rows(evaluation.recipe),
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


def _parts(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Some pairs of each part of the protocol; parts that `PARTS` does not know come last."""
    if evaluation.before is None or evaluation.after is None:
        return []
    drawn = list(dict.fromkeys(request.part for request in evaluation.after.requests))
    parts = []
    for name in sorted(drawn, key=[*PARTS, *drawn].index):
        before, after = evaluation.before.of(name), evaluation.after.of(name)
        total = len(after.images)
        pairs = []
        for k in range(min(SHOWN, total)):
            i = k * total // min(SHOWN, total)  # spread over the part, which is ordered by name
            urls = {"before": _data_url(before.images[i]), "after": _data_url(after.images[i])}
            pairs.append({**vars(after.requests[i]), **urls})
        parts.append({"title": PARTS.get(name, name), "total": total, "pairs": pairs})
    return parts


def _data_url(image: Image) -> str:
    small = image.convert("RGB")
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
