"""What a training's steps leave, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoints
from .robust import Adversary


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


@dataclass(frozen=True)
class Hooks:
    """What a training does between its steps.

    Args:
        callback: called after every step; what it returns may end the training.
        progress: show a progress bar.
        adversary: searches for ways back before each step, for robust training.
        checkpoints: where the state is kept, and gone on from.
    """

    callback: Callback | None = None
    progress: bool = True
    adversary: Adversary | None = None
    checkpoints: Checkpoints | None = None


class Once:
    """A function that is called at most once; None is never called."""

    def __init__(self, function: Callable[..., None] | None) -> None:
        self._function = function

    def __bool__(self) -> bool:
        return self._function is not None

    def __call__(self, *args: Any) -> None:
        """Call the function, if it was not called before."""
        if self._function is not None:
            self._function(*args)
            self._function = None
