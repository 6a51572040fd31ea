"""What an adapter does on states that it was not trained on: exact, where pictures are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusers_fdu import Concept, FDUnlearner
from diffusers_fdu.data.replay_buffer import Entry, ReplayBuffer, Role
from diffusers_fdu.data.teacher import ask

from .bench import RUNS

SEED = 1000  # of no training here
TRAJECTORIES = 24
ROWS = 128  # of each role


class Left(NamedTuple):
    """Mean squared differences from the frozen model's answers, in units of the one to unlearn.

    Args:
        distance: of the target from its anchor: 1 before the training, 0 when all is done.
        drift: of what is to stay: 0 before.
    """

    distance: float
    drift: float


class HeldOut:
    """Rows recorded with a seed of their own.

    Args:
        pipe: the frozen pipeline; its text must be what it is in the pipes to measure.
        concept: the target and its anchor.
    """

    def __init__(self, pipe: Any, concept: Concept) -> None:
        worker = FDUnlearner(pipe, RUNS, progress=False, seed=SEED, trajectories=TRAJECTORIES)
        self.buffer = worker.record(concept)
        self.unlearn = spread(self.buffer, "unlearn", ROWS)
        self.retain = spread(self.buffer, "retain", ROWS)
        self.first = self._error(worker.model, self.unlearn)

    def __call__(self, model: nn.Module) -> Left:
        """Ask a denoiser as it is."""
        errors = [self._error(model, rows) / self.first for rows in (self.unlearn, self.retain)]
        return Left(*(error.item() for error in errors))

    def _error(self, model: nn.Module, entries: Sequence[Entry]) -> Tensor:
        answers = ask(model, self.buffer, entries)
        return (answers - self.buffer.predictions(entries).float()).square().mean()


def spread(buffer: ReplayBuffer, role: Role, count: int) -> list[Entry]:
    """At most so many rows of a role, evenly over what was recorded."""
    entries = buffer.entries(role)
    places = torch.linspace(0, len(entries) - 1, min(count, len(entries))).round().long()
    return [entries[i] for i in places.tolist()]
