"""What an evaluation measured, and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adapters.evaluation_file import Metric
from ..utils.io import as_json, read_json
from .images import ImageSet


@dataclass(frozen=True)
class AttackResult:
    """How often an attack brought the concept back.

    `success` is the share of its pictures, over all seeds, that show the target again; `floor` the
    same on a model that never saw it. `unattacked` and `original` are the shares for the plain
    prompt on the same and on the original model. `budget` is what a run may spend ("steps",
    "denoiser_rows", "seconds", ...), `curve` has pairs of what was spent and the success by then,
    and `found` is what each seed found, such as an adversarial prompt.
    """

    name: str
    success: Metric
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    unattacked: float
    original: float
    floor: Metric | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What was measured of an adapter.

    `metrics` has "ua", "ira", "cra", "harmonic_mean", "clip_score", "fid", ...; `left_out` says
    what the protocol has and was not measured, and why. `about` is the protocol in words, `images`
    the number of pictures judged with the adapter, and `seconds` those of each stage.
    `weights_sha256` is None if the adapter was in no file. `before` and `after` are the pictures.
    """

    protocol: str
    about: str
    targets: tuple[str, ...]
    judge: str
    images: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    attacks: tuple[AttackResult, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    weights_sha256: str | None = None
    left_out: tuple[str, ...] = ()
    before: ImageSet | None = field(default=None, repr=False, compare=False)
    after: ImageSet | None = field(default=None, repr=False, compare=False)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation without its pictures as JSON types; ValueError if a number is not finite."""
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
    """The evaluation that `to_json` wrote, from its file or content; ValueError if it is none."""
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
    for name in ("seeds", "by_seed", "found"):
        values[name] = tuple(values[name])
    values["success"] = Metric(**values["success"])
    values["floor"] = None if values["floor"] is None else Metric(**values["floor"])
    values["curve"] = tuple((float(x), float(y)) for x, y in values["curve"])
    return AttackResult(**values)
