"""`evaluation.json`: what was measured of an adapter, beside its weights.

    {
      "protocol": "what was drawn, how often, and how a number was made of it",
      "images": 168,
      "seeds": [100, 101],
      "judge": "who said what a picture shows",
      "weights_sha256": "of the weights that were measured",
      "metrics": {
        "ua": {"value": 0.97, "low": 0.89, "high": 0.99, "before": 0.02},
        "ira": {"value": 0.98, "low": null, "high": null}
      }
    }

UA, IRA and CRA are those of UnlearnCanvas (arXiv 2402.11846), as shares from 0 to 1; other metrics
may be any finite number. "low" and "high" bound a 95 % confidence interval, null where none is
known; "before" is the same number without the adapter and may be missing, as may
"weights_sha256". With that, numbers are never taken for those of other weights.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, TypeGuard

from ..utils.io import read_json, write_json
from .summary import METRICS, number

EVALUATION_NAME = "evaluation.json"
MAX_BYTES = 2**20
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def write_evaluation(evaluation: dict[str, Any], folder: Path) -> None:
    """Write `evaluation.json`, whole or not at all.

    Raises:
        ValueError: see `checked`.
    """
    write_json(folder / EVALUATION_NAME, checked(evaluation))


def read_evaluation(folder: Path, weights: Path) -> dict[str, Any] | None:
    """What was measured of the weights; None if nothing was.

    Args:
        folder: that may hold `evaluation.json`.
        weights: the file of the weights.

    Raises:
        ValueError: if the file is damaged, or about other weights.
    """
    path = folder / EVALUATION_NAME
    if not path.exists():
        return None
    try:
        evaluation = checked(read_json(path, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no evaluation: {error}") from error
    known = evaluation.get("weights_sha256")
    if known is not None and known != sha256(weights):
        raise ValueError(
            f"{str(path)!r} is about other weights than {weights.name}: evaluate these, or remove "
            "the file"
        )
    return evaluation


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The same, once everything in it is as it should be.

    Raises:
        ValueError: with the field that is not.
    """
    for name in ("protocol", "judge"):
        if not isinstance(evaluation.get(name), str) or not evaluation[name].strip():
            raise ValueError(f"{name} must be a text, got {evaluation.get(name)!r}")
    images, seeds = evaluation.get("images"), evaluation.get("seeds")
    if not _is_whole(images) or images < 1:
        raise ValueError(f"images must be a number of pictures, got {images!r}")
    if not isinstance(seeds, list) or not all(map(_is_whole, seeds)):
        raise ValueError(f"seeds must be a list of whole numbers, got {seeds!r}")
    known = evaluation.get("weights_sha256")
    if known is not None and not re.fullmatch(r"[0-9a-f]{64}", str(known)):
        raise ValueError(f"weights_sha256 must be 64 hexadecimal digits, got {known!r}")
    metrics = evaluation.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"metrics must name at least one, got {metrics!r}")
    for name, metric in metrics.items():
        _check_metric(name, metric)
    return evaluation


def _check_metric(name: Any, metric: Any) -> None:
    if not NAME.fullmatch(str(name)):
        raise ValueError(f"{name!r} is no name of a metric: use letters, digits and '_'")
    if not isinstance(metric, dict):
        raise ValueError(f"{name} must be an object with a value, got {metric!r}")
    for key in ("value", "low", "high", "before"):
        value = metric.get(key)
        if value is None and key != "value":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} of {name} must be a number, got {value!r}")
        if number(value) is None or (name in METRICS and not 0 <= value <= 1):
            raise ValueError(f"{key} of {name} is out of range: {value!r}")


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
