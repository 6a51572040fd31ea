"""Charts as SVG within a page: bars with intervals, and curves. Colours are the page's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..result import AttackResult, Metric
from .words import named, written

ROW, LEFT, WIDTH, RIGHT = 32, 108, 250, 68
TWICE = ("specificity", "efficacy")
"""What another bar shows already."""
PLOT, MARGIN = (300, 150), 44


def bars(metrics: Mapping[str, Metric]) -> str:
    """Shares as horizontal bars: the value, its interval as a whisker, before as a thin mark."""
    shares = {
        name: metric
        for name, metric in metrics.items()
        if named(name).is_share and name not in TWICE
    }
    height = ROW * len(shares) + 24
    total = LEFT + WIDTH + RIGHT
    parts = [
        f'<svg class="bars" viewBox="0 0 {total} {height}" role="img" '
        f'aria-label="Shares with 95 % intervals">'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = LEFT + WIDTH * tick
        parts.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{height - 6}">{tick:.0%}</text>')
    for i, (name, metric) in enumerate(shares.items()):
        parts.append(_bar(name, metric, 4 + ROW * i))
    return "".join(parts) + "</svg>"


def _bar(name: str, metric: Metric, top: float) -> str:
    known, middle = named(name), top + ROW / 2
    way = {"less": " less", "more": " more"}.get(known.better, "")
    label = f"{known.title}: {written(name, metric.value)}"
    parts = [
        f'<g data-metric="{escape(name)}"><title>{escape(label)}, {escape(known.meaning)}</title>',
        f'<text class="name" x="{LEFT - 8}" y="{middle + 4:g}">{escape(known.title)}</text>',
        f'<rect class="bar{way}" x="{LEFT}" y="{top + 8:g}" '
        f'width="{WIDTH * metric.value:.2f}" height="{ROW - 16}" rx="2"/>',
    ]
    if metric.before is not None:
        x = LEFT + WIDTH * metric.before
        parts.append(
            f'<line class="before" x1="{x:.2f}" x2="{x:.2f}" y1="{top + 4:g}" '
            f'y2="{top + ROW - 4:g}"/>'
        )
    if metric.low is not None and metric.high is not None:
        a, b = LEFT + WIDTH * metric.low, LEFT + WIDTH * metric.high
        parts.append(
            f'<path class="whisker" d="M{a:.2f} {middle - 5:g}v10M{a:.2f} {middle:g}H{b:.2f}'
            f'M{b:.2f} {middle - 5:g}v10"/>'
        )
    x = LEFT + WIDTH + 10
    parts.append(
        f'<text class="value" x="{x}" y="{middle + 4:g}">{written(name, metric.value)}</text></g>'
    )
    return "".join(parts)


def curve(one: AttackResult) -> str:
    """Success along an attack; the floor, and the plain prompt on the original, are dashed."""
    width, height = PLOT
    xs = [x for x, _ in one.curve]
    low, high = min(xs), max(xs)
    span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - low) / span * (width - MARGIN - 12), 8 + (1 - y) * (height - 38)

    label = escape(f"{one.name}: success by what was spent")
    parts = [f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for tick in (0, 0.5, 1):
        _, y = place(low, tick)
        parts.append(f'<line class="grid" x1="{MARGIN}" x2="{width - 12}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text class="name" x="{MARGIN - 6}" y="{y + 4:g}">{tick:.0%}</text>')
    for css, value in (("floor", one.floor.value if one.floor else None), ("top", one.original)):
        if value is not None:
            _, y = place(low, value)
            parts.append(
                f'<line class="{css}" x1="{MARGIN}" x2="{width - 12}" y1="{y:.2f}" y2="{y:.2f}"/>'
            )
    parts += _points([place(x, y) for x, y in one.curve], one.curve)
    for x in sorted({low, high}):
        at, _ = place(x, 0)
        parts.append(f'<text class="tick" x="{at:.2f}" y="{height - 12}">{x:g}</text>')
    return "".join(parts) + "</svg>"


def _points(
    places: Sequence[tuple[float, float]], values: Sequence[tuple[float, float]]
) -> list[str]:
    path = "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
    found = [f'<path class="line" d="M{path}"/>']
    for (x, y), (spent, success) in zip(places, values, strict=True):
        title = f"<title>{spent:g}: {success:.0%}</title>"
        found.append(f'<circle class="point" cx="{x:.2f}" cy="{y:.2f}" r="3.5">{title}</circle>')
    return found
