"""`evaluation.json`: what was measured of an adapter, beside its weights; and metrics in words.

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

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ..utils.io import read_json, write_json
from .summary import number

EVALUATION_NAME = "evaluation.json"
MAX_BYTES = 2**20
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
SHARE, DISTANCE = ".1%", ".3g"

SHARES = {
    "ua": ("UA", "unlearning accuracy: the target's pictures that are not judged the target"),
    "ira": ("IRA", "in-domain retain accuracy: others judged right in the target's domain"),
    "cra": ("CRA", "cross-domain retain accuracy: others judged right in the other domain"),
    "harmonic_mean": ("Harmonic mean", "of UA, IRA and CRA"),
    "mace": ("MACE", "harmonic mean of efficacy, specificity and generality"),
    "efficacy": ("Efficacy", "the target's pictures that show the target"),
    "specificity": ("Specificity", "the others' pictures judged right: IRA"),
    "generality": ("Generality", "pictures of synonyms that show the target"),
    "paraphrases": ("Paraphrases", "pictures of paraphrases that still show the target"),
    "clip_accuracy": ("CLIP accuracy", "pictures nearer to the target than the anchor"),
}
DISTANCES = {
    "clip_score": ("CLIP score, target", "its pictures against its words, 0 to 2.5"),
    "clip_score_others": ("CLIP score, others", "pictures against prompts, 0 to 2.5"),
    "fid": ("FID", "of the others' pictures, before against after"),
    "kid": ("KID", "of the others' pictures, before against after"),
    "pixel_drift": ("Pixel drift", "of the others' pictures at equal seed, 0 to 1"),
}
"""Metrics by their names: the title, and what it counts."""
MORE_IS_BETTER = ("ua", "ira", "cra", "harmonic_mean", "mace", "specificity", "clip_score_others")


@dataclass(frozen=True)
class Metric:
    """A figure that was measured with the adapter, from `count` pictures.

    `low` and `high` bound its 95 % confidence interval and are None if that is not known;
    `before` is the same figure without the adapter, None where it has no meaning.
    """

    value: float
    low: float | None = None
    high: float | None = None
    before: float | None = None
    count: int = 0


class MetricReport(NamedTuple):
    """A metric that was measured, and the texts that pages show of it; "" where there is none."""

    name: str
    metric: Metric
    title: str
    meaning: str
    better: str
    about: str
    form: str
    value: str
    interval: str
    before: str

    def __str__(self) -> str:
        return f"{self.title} {self.value}" + (f" ({self.interval})" if self.interval else "")


def metric_report(name: str, metric: Metric) -> MetricReport:
    """A metric in words; one that is not described here is a number with a name."""
    form = SHARE if name in SHARES else DISTANCE
    title, meaning = (SHARES | DISTANCES).get(name, (name, ""))
    better = "more" if name in MORE_IS_BETTER else "less" if meaning else ""
    return MetricReport(
        name,
        metric,
        title,
        meaning,
        better,
        about=f"{meaning} ({better} is better)" if meaning else "",
        form=form,
        value=f"{metric.value:{form}}",
        interval=interval(metric, form),
        before="" if metric.before is None else f"{metric.before:{form}}",
    )


def interval(metric: Metric, form: str = SHARE) -> str:
    """Bounds of a figure's confidence interval; "" if they are not known."""
    low, high = metric.low, metric.high
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def metric_reports(evaluation: Mapping[str, Any]) -> list[MetricReport]:
    """The figures of an evaluation that `check_evaluation` let pass; none of an empty one."""
    names = Metric.__dataclass_fields__
    return [
        metric_report(name, Metric(**{key: metric[key] for key in metric if key in names}))
        for name, metric in evaluation.get("metrics", {}).items()
    ]


def write_evaluation(evaluation: dict[str, Any], folder: Path) -> None:
    """Write `evaluation.json`, whole or not at all."""
    write_json(folder / EVALUATION_NAME, check_evaluation(evaluation))


def read_evaluation(weights: Path) -> dict[str, Any] | None:
    """What was measured of the weights in a file, by the evaluation beside it; None if nothing.

    Raises:
        ValueError: if the evaluation is damaged, or about other weights.
    """
    path = weights.with_name(EVALUATION_NAME)
    if not path.exists():
        return None
    try:
        evaluation = check_evaluation(read_json(path, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no evaluation: {error}") from error
    digest = evaluation.get("weights_sha256")
    if digest is not None and digest != sha256(weights):
        raise ValueError(
            f"{str(path)!r} is about other weights than {weights.name}: "
            "evaluate these, or remove the file"
        )
    return evaluation


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The same evaluation, once everything in it is as it should be."""
    for name in ("protocol", "judge"):
        if not isinstance(evaluation.get(name), str) or not evaluation[name].strip():
            raise ValueError(f"{name} must be a text, got {evaluation.get(name)!r}")
    images, seeds = evaluation.get("images"), evaluation.get("seeds")
    if not _is_whole(images) or images < 1:
        raise ValueError(f"images must be a number of pictures, got {images!r}")
    if not isinstance(seeds, list) or not all(map(_is_whole, seeds)):
        raise ValueError(f"seeds must be a list of whole numbers, got {seeds!r}")
    digest = evaluation.get("weights_sha256")
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
        raise ValueError(f"weights_sha256 must be 64 hexadecimal digits, got {digest!r}")
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
        if number(value) is None or (name in SHARES and not 0 <= value <= 1):
            raise ValueError(f"{key} of {name} is out of range: {value!r}")


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
