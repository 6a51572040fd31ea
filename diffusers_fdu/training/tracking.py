"""Show a training's steps in TensorBoard, Weights & Biases or Trackio, through Accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.io import as_json
from .callbacks import Callback, StepRecord

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "diffusers-fdu"


def check_trackers(log_with: Sequence[Any]) -> None:
    """Refuse trackers that cannot be had.

    Raises:
        ValueError: for an unknown name.
        ImportError: if a tracker's package is not installed.
    """
    from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available

    installed = {
        "tensorboard": is_tensorboard_available,
        "wandb": is_wandb_available,
        "trackio": is_trackio_available,
    }
    for name in log_with:
        if isinstance(name, str) and name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}: choose {', '.join(TRACKERS)}")
        if isinstance(name, str) and not installed[name]():
            raise ImportError(f"logging with {name} needs it: pip install {name}")


@contextmanager
def tracked(
    log_with: Sequence[Any], folder: str | Path, config: dict[str, Any] | None = None
) -> Iterator[Callback]:
    """A callback for `FDUnlearner.unlearn` that logs every step.

        with tracked(["tensorboard"], "runs/logs") as callback:
            unlearner.unlearn("Snoopy", "dog", callback=callback)

    Args:
        log_with: names of `TRACKERS`, or trackers of Accelerate.
        folder: where those that write files do.
        config: shown with the run; nested values as text.

    Raises:
        ValueError, ImportError: see `check_trackers`.
    """
    from accelerate import Accelerator

    check_trackers(log_with)
    Path(folder).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(log_with=list(log_with), project_dir=str(folder))
    plain = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in as_json(config or {}).items()
    }
    accelerator.init_trackers(PROJECT, plain)

    def log(record: StepRecord) -> None:
        values = asdict(record)
        accelerator.log(values, step=values.pop("step"))

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the processes' group too
            tracker.finish()
