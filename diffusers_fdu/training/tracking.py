"""Show a training's steps in TensorBoard, Weights & Biases or Trackio, through Accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator, utils

from ..utils.io import as_json
from .callbacks import Callback, StepRecord

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "diffusers-fdu"


def check_trackers(log_with: Sequence[Any]) -> None:
    """Raise a ValueError for an unknown tracker, an ImportError for one that is not installed."""
    for name in log_with:
        if not isinstance(name, str):  # a tracker of the user's own
            continue
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}: choose {', '.join(TRACKERS)}")
        if not getattr(utils, f"is_{name}_available")():
            raise ImportError(f"logging with {name} needs it: pip install {name}")


@contextmanager
def tracked(
    log_with: Sequence[Any], folder: str | Path, config: dict[str, Any] | None = None
) -> Iterator[Callback]:
    """Yield a callback for `FDUnlearner.unlearn` that logs every step.

    It logs with named `TRACKERS` or trackers of Accelerate, of which some write into the folder.
    The config is shown with the run, nested values as text.
    """
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
