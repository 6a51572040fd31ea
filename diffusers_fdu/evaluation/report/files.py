"""An evaluation as files: `evaluation.json`, `report.md` and `report.html`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...adapters.evaluation_file import Metric, write_evaluation
from ...utils.io import as_json, read_json, writable_folder, write_text
from ..result import AttackResult, Evaluation
from .pages import to_html, to_markdown


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON types, in the format of `evaluation_file` and with more: no pictures.

    Raises:
        ValueError: if a number is not finite.
    """
    metrics = list(evaluation.metrics.items())
    for attack in evaluation.attacks:
        metrics += [(attack.name, m) for m in (attack.success, attack.floor) if m is not None]
    for name, metric in metrics:
        for key, value in vars(metric).items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{key} of {name} is {value}")
    values = asdict(replace(evaluation, before=None, after=None))
    return as_json({k: v for k, v in values.items() if k not in ("before", "after")})


def from_json(source: str | Path | Mapping[str, Any]) -> Evaluation:
    """The evaluation that `to_json` wrote, from its file or its content.

    Raises:
        ValueError: if there is none.
    """
    try:
        values = dict(source if isinstance(source, Mapping) else read_json(Path(source)))
        values["metrics"] = {name: Metric(**m) for name, m in values["metrics"].items()}
        values["attacks"] = tuple(map(_attack_result, values.get("attacks", ())))
        for name in ("targets", "seeds", "left_out"):
            values[name] = tuple(values.get(name, ()))
        return Evaluation(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no evaluation: {error}") from error


def _attack_result(content: Mapping[str, Any]) -> AttackResult:
    values = dict(content)
    values["success"] = Metric(**values["success"])
    values["floor"] = None if values["floor"] is None else Metric(**values["floor"])
    for name in ("seeds", "by_seed", "found"):
        values[name] = tuple(values[name])
    values["curve"] = tuple((float(x), float(y)) for x, y in values["curve"])
    return AttackResult(**values)


def write_report(evaluation: Evaluation, directory: str | Path) -> Path:
    """Write `evaluation.json`, `report.md` and `report.html`; returns the folder.

    Raises:
        ValueError: if the folder cannot be written, or a number is not finite.
    """
    folder = writable_folder(directory)
    write_evaluation(to_json(evaluation), folder)
    write_text(folder / "report.md", to_markdown(evaluation))
    write_text(folder / "report.html", to_html(evaluation))
    return folder
