"""The tables of the rows that `table` measures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from diffusers_fdu.utils.statistics import estimate

from ..studies.bench import line

Row = dict[str, Any]
COLUMNS = {
    "harmonic": "harmonic mean",
    "ua": "UA",
    "ira": "IRA",
    "cra": "CRA",
    "fid": "FID",
    "attack": "attack",
}


def means(rows: Sequence[Row], method: str, name: str) -> dict[str, float]:
    """One figure of a method: by target, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and name in row:
            found.setdefault(row["target"], []).append(row[name])
    return {target: fmean(values) for target, values in found.items()}


def ranked(rows: Sequence[Row]) -> list[str]:
    """The methods, best harmonic mean first."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return sorted(methods, key=lambda method: -fmean(means(rows, method, "harmonic").values()))


def printed(rows: Sequence[Row]) -> str:
    """Means with 95 % intervals over the targets' means, best harmonic mean first."""
    head = ["method", "rows", *COLUMNS.values(), "pictures", "s", "KB"]
    lines = [line(head), "|---" * len(head) + "|"]
    for method in ranked(rows):
        figures = [list(means(rows, method, name).values()) for name in COLUMNS]
        cells = [estimate(values) if values else "" for values in figures]
        seconds, size = (fmean(means(rows, method, n).values()) for n in ("seconds", "bytes"))
        drawn = [row["pictures"] for row in rows if row["method"] == method]
        costs = [sum(drawn), f"{seconds:.1f}", f"{size / 1024:.0f}"]
        lines.append(line([method, len(drawn), *cells, *costs]))
    return "\n".join(lines)


def by_target(rows: Sequence[Row]) -> str:
    """Harmonic mean of each target, mean over seeds, best method first."""
    targets = dict.fromkeys(row["target"] for row in rows)
    lines = [line(["harmonic mean", *targets]), "|---" * (1 + len(targets)) + "|"]
    for method in ranked(rows):
        own = means(rows, method, "harmonic")
        cells = [f"{own[target]:.3f}" if target in own else "" for target in targets]
        lines.append(line([method, *cells]))
    return "\n".join(lines)


def ahead(rows: Sequence[Row], ours: str) -> str:
    """Our harmonic mean less each other method's, paired by target.

    Args:
        rows: of any methods.
        ours: how the names of our methods begin.
    """
    methods = ranked(rows)
    own = [method for method in methods if method.startswith(ours)]
    others = [method for method in methods if method not in own]
    lines = [line(["harmonic mean less that of", *others]), "|---" * (1 + len(others)) + "|"]
    for method in own:
        cells = []
        for other in others:
            mine, theirs = (means(rows, name, "harmonic") for name in (method, other))
            gaps = [mine[target] - theirs[target] for target in mine if target in theirs]
            wins = f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}"
            cells.append(f"{estimate(gaps)}, {wins}" if gaps else "")
        lines.append(line([method, *cells]))
    return "\n".join(lines)
