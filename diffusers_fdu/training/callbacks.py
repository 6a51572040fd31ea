"""What a training does between its steps, and what it reports of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .checkpoint import Checkpoints
from .robust import Adversary


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
