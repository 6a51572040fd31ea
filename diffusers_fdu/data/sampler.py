"""Which rows of the replay buffer a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..pipelines.offload import placement
from ..utils.distributed import Processes
from ..utils.nested import to_device
from .replay_buffer import ReplayBuffer
from .rows import Part, Row


@dataclass(frozen=True)
class Batch:
    """Denoiser calls and what they are to answer; rows to unlearn come first.

    Args:
        calls: what the denoiser is asked, (B, ...) in all.
        target: the predictions to reach, (B, ...), float32.
        size: how many rows are to unlearn.
        concept: index of the concept of each row to unlearn, (size,).
        timestep: of each row, (B,), float32, on a scale that ends at 1000.
        held: the rows to retain, where they are asked apart.
    """

    calls: list[Part]
    target: Tensor
    size: int
    concept: Tensor
    timestep: Tensor
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
        processes: take parts of equal size of one batch.
        alike: give all processes equally many calls, some without rows, as a sharded denoiser
            needs.

    Raises:
        ValueError: if nothing was recorded to retain.
    """

    def __init__(
        self,
        model: nn.Module,
        buffer: ReplayBuffer,
        size: int,
        seed: int,
        retains: bool = True,
        apart: bool = False,
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
        self._timesteps = (buffer.timesteps * (1000 / buffer.clock.length)).float()
        self._turn = 0

    def draw(self) -> Draw:
        """Random rows, this process's part of them."""
        unlearn = self.processes.share(self._unlearn(self.size))
        return Draw(unlearn, self.processes.share(self._retain(self.size)) if self.retains else [])

    def gather(self, rows: Draw) -> Batch:
        """These rows as a batch."""
        if self.apart:
            return replace(self.batch(rows.unlearn, []), held=self.batch([], rows.retain))
        return self.batch(rows.unlearn, rows.retain)

    def state_dict(self) -> dict[str, Any]:
        """What the next batch depends on, for a checkpoint."""
        return {"generator": self.generator.get_state(), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
            missing = max(self.processes.gather([len(calls)])) - len(calls)
            calls += [Part(calls[0].inputs, [])] * missing
        entries = [self.buffer.entry(row) for row in rows]
        states = [entry.state for entry in entries]
        concept = torch.tensor([e.concept for e in entries[: len(unlearn)]], dtype=torch.long)
        return Batch(
            calls,
            target,
            len(unlearn),
            to_device(concept, target.device, None),
            to_device(self._timesteps[states], target.device, None),
        )

    def _unlearn(self, size: int) -> list[Row]:
        count = self.buffer.count("adversarial")
        adversarial = size // 2 if count else 0
        rows = self._recorded(size - adversarial)
        if adversarial:
            rows += [("adversarial", i) for i in self._places(count, adversarial)]
        return rows

    def _recorded(self, size: int) -> list[Row]:
        if self.concepts == 1:
            return [("unlearn", i) for i in self._places(self.buffer.count("unlearn"), size)]
        rows: list[Row] = []
        for _ in range(size):
            own = self._own[self._turn % self.concepts]
            self._turn += 1
            rows += [("unlearn", int(own[i])) for i in self._places(len(own), 1)]
        return rows

    def _retain(self, size: int) -> list[Row]:
        return [("retain", i) for i in self._places(self.buffer.count("retain"), size)]

    def _places(self, count: int, size: int) -> list[int]:
        return torch.randint(count, (size,), generator=self.generator).tolist()
