"""Which rows of the replay buffer a step sees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..pipelines.offload import placement
from ..utils.distributed import Processes
from ..utils.nested import to_device
from .replay_buffer import DenoiserCall, ReplayBuffer, Role, Row


@dataclass(frozen=True)
class Batch:
    """Denoiser calls of B rows and what they are to answer; rows to unlearn come first."""

    calls: list[DenoiserCall]
    target: Tensor  # predictions to reach, (B, ...), float32
    size: int  # number of rows to unlearn
    concept: Tensor  # index of the concept of each row to unlearn, (size,)
    timestep: Tensor  # (B,), float32, on a scale that ends at 1000
    held: Self | None = None  # the rows to retain, where they are in calls of their own


@dataclass(frozen=True)
class Draw:
    """Rows of one step: equally many of each role, but none to retain if nothing is retained."""

    unlearn: list[Row]
    retain: list[Row]

    def __len__(self) -> int:
        return len(self.unlearn)

    def part(self, start: int, size: int) -> Self:
        """At most `size` rows of each role from the `start`-th on."""
        rows = slice(start, start + size)
        return replace(self, unlearn=self.unlearn[rows], retain=self.retain[rows])


class Sampler:
    """Draws batches: as many rows to unlearn as to retain, all concepts equally often.

    A batch has `size` rows of each role for each process, which take parts of equal size of it.
    The model determines the device and the dtype. With `apart`, rows to retain are in calls of
    their own; with `alike`, all processes make equally many calls, as a sharded denoiser needs.
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
        if retains and not buffer.count("retain"):
            raise ValueError(
                "nothing was recorded to retain: use guidance_scale > 1, or retain_weight=0"
            )
        self.processes = processes or Processes()
        self.model, self.buffer = model, buffer
        self.size = size * self.processes.count
        self.retains, self.apart = retains, apart and retains
        self.generator = torch.Generator().manual_seed(seed)
        entries = buffer.entries("unlearn")
        self.concepts = 1 + max(entry.concept for entry in entries)
        self._alike = alike and buffer.is_ragged  # texts of one length are one call anyway
        self._of_concept = [
            torch.tensor([i for i, entry in enumerate(entries) if entry.concept == k])
            for k in range(self.concepts)
        ]
        self._timesteps = (buffer.timesteps * (1000 / buffer.clock.length)).float()
        self._turn = 0

    def draw(self) -> Draw:
        """Random rows, this process's part of them."""
        unlearn = self.processes.share(self._draw_unlearn())
        retain = self.processes.share(self._draw("retain", self.size)) if self.retains else []
        return Draw(unlearn, retain)

    def gather(self, rows: Draw) -> Batch:
        """The batch of a draw."""
        if self.apart:
            return replace(self.batch(rows.unlearn, []), held=self.batch([], rows.retain))
        return self.batch(rows.unlearn, rows.retain)

    def batch(self, unlearn: Sequence[Row], retain: Sequence[Row]) -> Batch:
        """A batch of these rows, in calls that they share."""
        rows = [*unlearn, *retain]
        calls, target = self.buffer.batch(rows, *placement(self.model))
        if self._alike:
            missing = max(self.processes.gather([len(calls)])) - len(calls)
            calls += [DenoiserCall(calls[0].inputs, [])] * missing
        entries = [self.buffer.entry(row) for row in rows]
        concept = torch.tensor([e.concept for e in entries[: len(unlearn)]], dtype=torch.long)
        timestep = self._timesteps[[entry.state for entry in entries]]
        concept, timestep = to_device((concept, timestep), target.device, None)
        return Batch(calls, target, len(unlearn), concept, timestep)

    def evenly_spaced(self, concept: int, count: int) -> list[Row]:
        """At most `count` rows of a concept, spread evenly over what was recorded of it."""
        indices = self._of_concept[concept]
        places = torch.linspace(0, len(indices) - 1, min(count, len(indices))).round().long()
        return [("unlearn", i) for i in indices[places].tolist()]

    def state_dict(self) -> dict[str, Any]:
        """What the next batch depends on, for a checkpoint."""
        return {"generator": self.generator.get_state(), "turn": self._turn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as from that state."""
        self.generator.set_state(state["generator"])
        self._turn = state["turn"]

    def _draw_unlearn(self) -> list[Row]:
        adversarial = self.size // 2 if self.buffer.count("adversarial") else 0
        if self.concepts == 1:
            rows = self._draw("unlearn", self.size - adversarial)
        else:
            rows = []
            for _ in range(self.size - adversarial):
                indices = self._of_concept[self._turn % self.concepts]
                self._turn += 1
                rows += [("unlearn", int(indices[i])) for i in self._places(len(indices), 1)]
        return rows + (self._draw("adversarial", adversarial) if adversarial else [])

    def _draw(self, role: Role, size: int) -> list[Row]:
        return [(role, i) for i in self._places(self.buffer.count(role), size)]

    def _places(self, count: int, size: int) -> list[int]:
        return torch.randint(count, (size,), generator=self.generator).tolist()
