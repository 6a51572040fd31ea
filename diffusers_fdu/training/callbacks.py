"""What a training's steps leave, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as `history` keeps it and callbacks get it.

    Args:
        step: from 0.
        loss: what was minimised.
        divergence: mean phi over the rows to unlearn.
        distance: mean s over the same rows, on one scale for every f.
        retain: mean s / 2 over the rows to retain.
        learning_rate: of this step.
    """

    step: int
    loss: float
    divergence: float
    distance: float
    retain: float
    learning_rate: float


Callback = Callable[[StepRecord], bool | None]
"""Called after every step; True ends the training."""
