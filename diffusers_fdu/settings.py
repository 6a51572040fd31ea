"""All options of a training together, and how they are given by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from .config import DataConfig, PerformanceConfig, Robust, TrainConfig, Variational


class Settings(NamedTuple):
    """All options, by what they are about."""

    train: TrainConfig
    data: DataConfig
    performance: PerformanceConfig

    @property
    def offloads(self) -> bool:
        """Whether text encoders and autoencoder leave the accelerator, but for robust training."""
        return self.performance.offload is not False and self.data.defence is None

    def pictures(self, concepts: int) -> int:
        """How many pictures are recorded at most for so many concepts."""
        return self.data.pictures(concepts, self.train.retain_weight > 0)

    @property
    def roles(self) -> int:
        """How many roles, to unlearn and to retain, the rows of one pass have."""
        return 1 if self.train.surgery or not self.train.retain_weight else 2


OPTIONS: tuple[Any, ...] = (TrainConfig, DataConfig, PerformanceConfig)
Built = TypeVar("Built")


def option_names() -> list[str]:
    """Names of all fields of `TrainConfig`, `DataConfig` and `PerformanceConfig`."""
    return [field.name for kind in OPTIONS for field in fields(kind)]


def settings(options: Mapping[str, Any]) -> Settings:
    """Sort options by what they are about.

    Args:
        options: fields of `TrainConfig`, `DataConfig`, `PerformanceConfig`, by name. In place of a
            `Variational` or a `Robust` a mapping of its fields may stand, as in a YAML file or a
            recipe: `{"estimator": {"variational": {"width": 32}}, "robust": {"every": 3}}`.

    Raises:
        TypeError: for an unknown name, with the nearest one.
        ValueError: for a bad value.
    """
    check_names(options, option_names())
    found = dict(options)
    if isinstance(estimator := found.get("estimator"), Mapping):
        is_named = list(estimator) == ["variational"]
        values, name = (estimator["variational"], ".variational") if is_named else (estimator, "")
        found["estimator"] = _built(Variational, values, f"estimator{name}")
    if isinstance(found.get("robust"), Mapping):
        found["robust"] = _built(Robust, found["robust"], "robust")
    return Settings(*(_built(kind, _part(found, kind)) for kind in OPTIONS))


def check_names(options: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
    """Refuse names that are not known.

    Args:
        options: values by name.
        known: the names that they may have.
        prefix: what the error puts before each name, such as "robust.".

    Raises:
        TypeError: with the nearest known name, or all of them if none is near.
    """
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else "choose " + ", ".join(known)
            raise TypeError(f"unknown option {prefix + str(name)!r}: {advice}")


def _part(options: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    return {field.name: options[field.name] for field in fields(kind) if field.name in options}


def _built(kind: type[Built], values: Mapping[str, Any] | None, name: str = "") -> Built:
    """A dataclass of these values, which stand under `name` in the options."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    check_names(values or {}, known, f"{name}." if name else "")
    return kind(**(values or {}))
