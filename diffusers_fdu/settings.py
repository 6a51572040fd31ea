"""All options of a training together, and how they are given by name."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from . import config


class Settings(NamedTuple):
    """All options, by what they are about."""

    train: config.TrainConfig
    data: config.DataConfig
    performance: config.PerformanceConfig

    @property
    def offloads(self) -> bool:
        """Whether text encoders and autoencoder leave the accelerator, but for robust training."""
        return self.performance.offload is not False and self.data.defence is None

    def pictures(self, concepts: int) -> int:
        """How many pictures are recorded at most for so many concepts."""
        retains = self.train.retain_weight > 0
        return self.data.stages[-1] * (concepts + config.RETAIN_PER_TRAJECTORY * retains)

    @property
    def roles(self) -> int:
        """How many roles, to unlearn and to retain, the rows of one pass have."""
        return 1 if self.train.surgery or not self.train.retain_weight else 2


OPTIONS: tuple[Any, ...] = (config.TrainConfig, config.DataConfig, config.PerformanceConfig)
Config = TypeVar("Config")


def option_names() -> list[str]:
    """Names of all fields of `TrainConfig`, `DataConfig` and `PerformanceConfig`."""
    return [field.name for kind in OPTIONS for field in fields(kind)]


def settings(options: Mapping[str, Any]) -> Settings:
    """Sort options, given by their names, by what they are about.

    In place of a `Variational` or a `Robust` a mapping of its fields may stand, as in a YAML file
    or a recipe: `{"estimator": {"variational": {"width": 32}}, "robust": {"every": 3}}`.

    Raises:
        TypeError: for an unknown name, with the nearest one.
        ValueError: for a bad value.
    """
    check_names(options, option_names())
    values = dict(options)
    if isinstance(estimator := values.get("estimator"), Mapping):
        is_named = list(estimator) == ["variational"]
        critic, name = (estimator["variational"], ".variational") if is_named else (estimator, "")
        values["estimator"] = _build(config.Variational, critic, f"estimator{name}.")
    if isinstance(values.get("robust"), Mapping):
        values["robust"] = _build(config.Robust, values["robust"], "robust.")

    def part(kind: Any) -> Any:
        names = [field.name for field in fields(kind)]
        return kind(**{name: values[name] for name in names if name in values})

    return Settings(*map(part, OPTIONS))


def _build(kind: type[Config], values: Mapping[str, Any] | None, prefix: str) -> Config:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    check_names(values or {}, names, prefix)
    return kind(**(values or {}))


def check_names(options: Mapping[str, Any], valid: Collection[str], prefix: str = "") -> None:
    """Raise a TypeError for a name that is not known, with the nearest that is, or all of them.

    The error puts the prefix, such as "robust.", before each name.
    """
    for name in options:
        if name not in valid:
            near = difflib.get_close_matches(str(name), valid, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else "choose " + ", ".join(valid)
            raise TypeError(f"unknown option {prefix + str(name)!r}: {advice}")
