"""Which rows of the replay buffer a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Weighting
from ..pipelines.offload import placement
from ..utils.distributed import Processes
from ..utils.nested import given
from .replay_buffer import (
    Part,
    ReplayBuffer,
    Role,
    Row,
)
from .timesteps import timestep_weights


@dataclass(frozen=True)
class Batch:
    """Denoiser calls and what they are to answer; rows to unlearn come first.

    Args:
        calls: what the denoiser is asked, (B, ...) in all.
        target: the predictions to reach, (B, ...), float32.
        size: how many rows are to unlearn.
        concept: index of the concept of each row to unlearn, (size,).
        timestep: of each row, (B,), float32, on a scale that ends at 1000.
        weights: of each row to unlearn, (size,); None: all 1.
        held: the rows to retain, where they are asked apart.
    """

    calls: list[Part]
    target: Tensor
    size: int
    concept: Tensor
    timestep: Tensor
    weights: Tensor | None = None
    held: Batch | None = None


@dataclass(frozen=True)
class Draw:
    """Rows of one step, as many of each role; none to retain if nothing is."""

    unlearn: list[Row]
    retain: list[Row]

    def __len__(self) -> int:
        return len(self.unlearn)

    def part(self, start: int, size: int) -> Draw:
        """At most `size` rows of each role from the `start`-th on."""
        own = slice(start, start + size)
        return Draw(self.unlearn[own], self.retain[own])


class Sampler:
    """Draws batches: as many rows to unlearn as to retain, all concepts equally often.

    Args:
        model: the denoiser, which says the device and the dtype.
        buffer: what was recorded.
        size: rows of each role, for each process.
        seed: of the choices.
        retains: whether rows to retain are drawn at all.
        apart: put them into a call of their own.
        sampling: how often a row is drawn, by its timestep.
        weights: what a row to unlearn counts, by its timestep.
        scheduler: see `timestep_weights`.
        processes: take parts of equal size of one batch.
        alike: give all processes equally many calls, some without rows, as a sharded denoiser
            needs.

    Raises:
        ValueError: if there is nothing to draw, and see `timestep_weights`.
    """

    def __init__(
        self,
        model: nn.Module,
        buffer: ReplayBuffer,
        size: int,
        seed: int,
        retains: bool = True,
        apart: bool = False,
        sampling: Weighting = "uniform",
        weights: Weighting = "uniform",
        scheduler: Any = None,
        processes: Processes | None = None,
        alike: bool = False,
    ) -> None:
        self.processes = processes or Processes()
        self._alike = alike and buffer.is_ragged
        self.model, self.buffer = model, buffer
        self.size = size * self.processes.count
        self.retains, self.apart = retains, apart and retains
        self.generator = torch.Generator().manual_seed(seed)
        entries = buffer.entries("unlearn")
        self.concepts = 1 + max(entry.concept for entry in entries)
        if retains and not buffer.count("retain"):
            raise ValueError(
                "nothing was recorded to retain: use guidance_scale > 1, or retain_weight=0"
            )
        self._own = [
            torch.tensor([i for i, entry in enumerate(entries) if entry.concept == k])
            for k in range(self.concepts)
        ]
        timesteps = buffer.timesteps
        self._timesteps = (timesteps * (1000 / buffer.clock.length)).float()
        self._weights: Tensor | None = None
        if weights != "uniform":
            # Of every state, and 1 on average over the rows to unlearn.
            own = timestep_weights(weights, scheduler, timesteps)
            self._weights = own / own[[entry.state for entry in entries]].mean()
        self._chances: dict[Role, Tensor] = {}
        if sampling != "uniform":
            roles: tuple[Role, ...] = ("unlearn", "retain") if retains else ("unlearn",)
            for role in roles:
                at = timesteps[[entry.state for entry in buffer.entries(role)]]
                self._chances[role] = timestep_weights(sampling, scheduler, at)
            if not all(self._chances["unlearn"][own].any() for own in self._own):
                raise ValueError("timestep_sampling never draws one of the concepts")
        self._turn = 0

    def __call__(self) -> Batch:
        """A random batch."""
        return self.gather(self.draw())

    def draw(self) -> Draw:
        """Random rows, this process's part of them."""
        unlearn = self.processes.own(self._unlearn(self.size))
        return Draw(unlearn, self.processes.own(self._retain(self.size)) if self.retains else [])

    def gather(self, rows: Draw) -> Batch:
        """These rows as a batch."""
        if self.apart:
            return replace(self.batch(rows.unlearn, []), held=self.batch([], rows.retain))
        return self.batch(rows.unlearn, rows.retain)

    def state(self) -> dict[str, Any]:
        """What the next batch depends on, for a checkpoint."""
        return {"generator": self.generator.get_state(), "turn": self._turn}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.generator.set_state(state["generator"])
        self._turn = state["turn"]

    def spread(self, concept: int, count: int) -> list[Row]:
        """Rows of one concept, at most `count`, spread evenly over what was recorded of it."""
        own = self._own[concept]
        places = torch.linspace(0, len(own) - 1, min(count, len(own))).round().long()
        return [("unlearn", i) for i in own[places].tolist()]

    def batch(self, unlearn: Sequence[Row], retain: Sequence[Row]) -> Batch:
        """These rows as a batch."""
        rows = [*unlearn, *retain]
        calls, target = self.buffer.batch(rows, *placement(self.model))
        if self._alike:
            missing = self.processes.most(len(calls)) - len(calls)
            calls += [Part(calls[0].inputs, [])] * missing
        entries = [self.buffer.entry(row) for row in rows]
        states = [entry.state for entry in entries]
        concept = torch.tensor([e.concept for e in entries[: len(unlearn)]], dtype=torch.long)
        weights = None
        if self._weights is not None and unlearn:
            weights = given(self._weights[states[: len(unlearn)]], target.device, None)
        return Batch(
            calls,
            target,
            len(unlearn),
            given(concept, target.device, None),
            given(self._timesteps[states], target.device, None),
            weights,
        )

    def _unlearn(self, size: int) -> list[Row]:
        count = self.buffer.count("adversarial")
        adversarial = size // 2 if count else 0
        rows = self._recorded(size - adversarial)
        if adversarial:
            places = torch.randint(count, (adversarial,), generator=self.generator)
            rows += [("adversarial", i) for i in places.tolist()]
        return rows

    def _recorded(self, size: int) -> list[Row]:
        if self.concepts == 1:
            return [("unlearn", i) for i in self._picked("unlearn", size, None).tolist()]
        rows: list[Row] = []
        for _ in range(size):
            own = self._own[self._turn % self.concepts]
            self._turn += 1
            rows += [("unlearn", int(i)) for i in self._picked("unlearn", 1, own)]
        return rows

    def _retain(self, size: int) -> list[Row]:
        mined = size // 2 if self.buffer.count("mined") else 0
        rows: list[Row] = [("retain", int(i)) for i in self._picked("retain", size - mined, None)]
        if mined:
            places = torch.randint(self.buffer.count("mined"), (mined,), generator=self.generator)
            rows += [("mined", i) for i in places.tolist()]
        return rows

    def _picked(self, role: Role, size: int, among: Tensor | None) -> Tensor:
        chances = self._chances.get(role)
        if chances is None:
            count = self.buffer.count(role) if among is None else len(among)
            places = torch.randint(count, (size,), generator=self.generator)
        else:
            own = chances if among is None else chances[among]
            places = torch.multinomial(own, size, replacement=True, generator=self.generator)
        return places if among is None else among[places]
