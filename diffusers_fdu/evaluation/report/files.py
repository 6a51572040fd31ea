"""An evaluation as files: `evaluation.json`, `report.md` and `report.html`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...adapters.evaluation_file import Metric, write_evaluation
from ...utils.io import as_json, read_json, writable_folder, write_text
from ..result import AttackResult, Evaluation
from .pages import to_html, to_markdown

PICTURES = ("before", "after")


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """As JSON types, in the format of `measured` and with more: the pictures stay out.

    Raises:
        ValueError: if a figure is not finite.
    """
    values = asdict(replace(evaluation, before=None, after=None))
    for name in ("before", "after"):
        del values[name]
    for owner, metric in _metrics(evaluation):
        for key, value in vars(metric).items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{key} of {owner} is {value}")
    return as_json(values)


def from_json(source: str | Path | Mapping[str, Any]) -> Evaluation:
    """What `to_json` made, from its file or as it is.

    Raises:
        ValueError: if it is none.
    """
    try:
        content = source if isinstance(source, Mapping) else read_json(Path(source))
        values = dict(content)
        values["metrics"] = {name: Metric(**m) for name, m in values["metrics"].items()}
        values["attacks"] = tuple(_read(one) for one in values.get("attacks", ()))
        for name in ("targets", "seeds", "left_out"):
            values[name] = tuple(values.get(name, ()))
        return Evaluation(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no evaluation: {error}") from error


def write_report(evaluation: Evaluation, directory: str | Path) -> Path:
    """Write `evaluation.json`, `report.md` and `report.html`; returns the folder.

    Raises:
        ValueError: if the folder cannot be written, or a figure is not finite.
    """
    folder = writable_folder(directory)
    write_evaluation(to_json(evaluation), folder)
    for name, text in (
        ("report.md", to_markdown(evaluation)),
        ("report.html", to_html(evaluation)),
    ):
        write_text(folder / name, text)
    return folder


def _metrics(evaluation: Evaluation) -> Iterator[tuple[str, Metric]]:
    """Everything that was measured, by name."""
    yield from evaluation.metrics.items()
    for one in evaluation.attacks:
        yield from ((one.name, metric) for metric in (one.success, one.floor) if metric)


def _read(content: Mapping[str, Any]) -> AttackResult:
    values = dict(content)
    values["success"] = Metric(**values["success"])
    values["floor"] = None if values["floor"] is None else Metric(**values["floor"])
    for name in ("seeds", "by_seed", "found"):
        values[name] = tuple(values[name])
    values["curve"] = tuple((float(x), float(y)) for x, y in values["curve"])
    return AttackResult(**values)
