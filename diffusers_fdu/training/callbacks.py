"""What a training does between its steps, and where it reports them: callbacks and trackers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, utils

from ..utils.io import as_json
from .checkpoint import Checkpoints
from .robust import Adversary

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as `FDUnlearner.history` keeps it and callbacks receive it.

    Args:
        step: number of the step, from 0.
        loss: the objective that was minimised.
        divergence: mean profile phi(s) over the rows to unlearn.
        distance: mean s over the same rows, which is on one scale for every f.
        retain: mean s / 2 over the rows to retain.
        learning_rate: learning rate of this step.

    Example:
        >>> records = []
        >>> worker = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
        >>> _ = worker.unlearn("dog", "cat", callback=records.append)
        >>> [record.step for record in records]
        [0, 1]
    """

    step: int
    loss: float
    divergence: float
    distance: float
    retain: float
    learning_rate: float


Callback = Callable[[StepRecord], bool | None]
"""Called after every step; returning True ends the training."""


@dataclass(frozen=True)
class Hooks:
    """What a training does between its steps: call back, show a bar, attack, keep its state."""

    callback: Callback | None = None
    progress: bool = True
    adversary: Adversary | None = None
    checkpoints: Checkpoints | None = None


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
    accelerator.init_trackers("diffusers-fdu", plain)

    def log(record: StepRecord) -> None:
        values = asdict(record)
        accelerator.log(values, step=values.pop("step"))

    try:
        yield log
    finally:
        for tracker in accelerator.trackers:  # `end_training` would end the processes' group too
            tracker.finish()
