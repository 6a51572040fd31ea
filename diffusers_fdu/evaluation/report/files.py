"""An evaluation as files: `evaluation.json`, `report.md` and `report.html`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...adapters.measured import EVALUATION_NAME, write_evaluation
from ...utils.io import as_json, read_json, writable_folder, write_text
from ..result import AttackResult, Evaluation, Metric
from .markdown import to_markdown
from .page import to_html

PICTURES = ("before", "after")


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """As JSON types, in the format of `measured` and with more: the pictures stay out.

    Raises:
        ValueError: if a figure is not finite.
    """
    found = {
        f.name: getattr(evaluation, f.name) for f in fields(Evaluation) if f.name not in PICTURES
    }
    found["metrics"] = {name: _metric(name, m) for name, m in evaluation.metrics.items()}
    found["attacks"] = [_attack(one) for one in evaluation.attacks]
    return as_json(found)


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


def is_evaluation(directory: str | Path) -> bool:
    """Whether a folder holds one."""
    return (Path(directory) / EVALUATION_NAME).is_file()


def _metric(name: str, metric: Metric) -> dict[str, Any]:
    values = asdict(metric)
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{key} of {name} is {value}")
    return values


def _attack(result: AttackResult) -> dict[str, Any]:
    found = asdict(result)
    found["success"] = _metric(result.name, result.success)
    found["floor"] = None if result.floor is None else _metric(result.name, result.floor)
    return found


def _read(content: Mapping[str, Any]) -> AttackResult:
    values = dict(content)
    values["success"] = Metric(**values["success"])
    values["floor"] = None if values["floor"] is None else Metric(**values["floor"])
    for name in ("seeds", "by_seed", "found"):
        values[name] = tuple(values[name])
    values["curve"] = tuple((float(x), float(y)) for x, y in values["curve"])
    return AttackResult(**values)
