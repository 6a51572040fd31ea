"""The report as one self-contained page: no script, and nothing to load."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL.Image import Image, Resampling

from ...adapters.summary import shown
from ..images import Gallery
from ..request import Request
from ..result import AttackResult, Evaluation
from .charts import bars, curve
from .markdown import about, budget, recipe_rows
from .words import (
    headline,
    interval,
    named,
    written,
)

TEMPLATE = Path(__file__).parent / "page.html"
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


def to_html(evaluation: Evaluation) -> str:
    """The page."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(", ".join(map(shown, evaluation.targets))),
        headline=escape(headline(evaluation)),
        protocol=escape(evaluation.about),
        bars=bars(evaluation.metrics),
        metrics="".join(_metric_rows(evaluation)),
        grids="".join(_grids(evaluation)),
        attacks=_attacks(evaluation.attacks),
        about="".join(f"<li>{escape(line)}</li>" for line in about(evaluation)),
        recipe="".join(_recipe(evaluation)),
    )


def _metric_rows(evaluation: Evaluation) -> Iterator[str]:
    for name, metric in evaluation.metrics.items():
        known = named(name)
        better = f" ({known.better} is better)" if known.better else ""
        cells = {
            "before": written(name, metric.before),
            "after": written(name, metric.value),
            "95 %": interval(name, metric),
            "pictures": str(metric.count or ""),
        }
        tds = "".join(f'<td data-label="{k}">{escape(v)}</td>' for k, v in cells.items())
        yield (
            f'<tr><th scope="row">{escape(known.title)}<small>{escape(known.meaning + better)}'
            f"</small></th>{tds}</tr>"
        )


def _grids(evaluation: Evaluation) -> Iterator[str]:
    before, after = evaluation.before, evaluation.after
    if before is None or after is None:
        return
    known = list(dict.fromkeys(request.part for request in after.requests))
    for part in sorted(known, key=lambda name: list(PARTS).index(name) if name in PARTS else 99):
        yield _grid(part, before.of(part), after.of(part))


def _grid(part: str, before: Gallery, after: Gallery) -> str:
    total = len(after.images)
    # Spread over the part, which is ordered by name.
    places = [i * total // min(SHOWN, total) for i in range(min(SHOWN, total))]
    pairs = "".join(_pair(after.requests[i], before.images[i], after.images[i]) for i in places)
    title = escape(PARTS.get(part, part))
    return (
        f"<section><h2>{title}</h2><p>{len(places)} of {total} pictures, the same noise before "
        f'and after.</p><div class="grid-of-pairs">{pairs}</div></section>'
    )


def _pair(request: Request, before: Image, after: Image) -> str:
    prompt = escape(shown(request.prompt))
    figures = "".join(
        f'<img src="{_data(image)}" alt="{when}: {prompt}" loading="lazy">'
        for when, image in (("before", before), ("after", after))
    )
    return (
        f'<figure><div class="pair">{figures}</div>'
        f"<figcaption>{prompt} <small>seed {request.seed}</small></figcaption></figure>"
    )


def _data(image: Image) -> str:
    small = image.convert("RGB")
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _attacks(attacks: Sequence[AttackResult]) -> str:
    if not attacks:
        return ""
    rows = "".join(_attack_row(one) for one in attacks)
    heads = ("success", "95 %", "by seed", "plain prompt", "original", "floor", "budget")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    curves = "".join(
        f"<figure>{curve(one)}<figcaption>{escape(one.name)}</figcaption></figure>"
        for one in attacks
        if len(one.curve) > 1
    )
    return (
        "<section><h2>Attacks</h2><p>How often the concept came back. The floor is the same "
        "attack on a model that never saw it; the original is the plain prompt without the "
        f'adapter.</p><div class="wide"><table><thead><tr><th scope="col">attack</th>{head}</tr>'
        f'</thead><tbody>{rows}</tbody></table></div><div class="curves">{curves}</div></section>'
    )


def _attack_row(one: AttackResult) -> str:
    cells: list[Any] = [
        f"{one.success.value:.0%}",
        interval("ua", one.success),
        ", ".join(f"{value:.0%}" for value in one.by_seed),
        f"{one.unattacked:.0%}",
        f"{one.original:.0%}",
        "" if one.floor is None else f"{one.floor.value:.0%}",
        budget(one),
    ]
    found = f"<small>{escape('; '.join(map(shown, one.found)))}</small>" if one.found else ""
    tds = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(one.name)}{found}</th>{tds}</tr>'


def _recipe(evaluation: Evaluation) -> Iterator[str]:
    for title, row in recipe_rows(evaluation):
        yield f'<tr><th scope="row">{escape(title)}</th><td>{escape(row)}</td></tr>'
