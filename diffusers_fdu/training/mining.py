"""Find what the adapter changes most, and retain that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..adapters.lora import scaled
from ..data.replay_buffer import Entry, ReplayBuffer
from ..data.teacher import ask

EVERY = 20  # steps
ASKED = 64  # candidates at a time
KEPT = 24  # of them


class Miner:
    """Every few steps asks the model about candidate prompts, with the adapter and without.

    Those whose predictions differ most become the buffer's "mined" rows, in place of the last.

    Args:
        model: the denoiser, the adapter active.
        adapter_name: the adapter that is trained.
        buffer: holds the candidates' texts; rows are added to it.
        seed: of the choices.
        size: rows in one call.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter_name: str,
        buffer: ReplayBuffer,
        seed: int,
        size: int = 16,
    ) -> None:
        self.model, self.adapter_name, self.buffer = model, adapter_name, buffer
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self._states = sorted({entry.state for entry in buffer.entries("retain")})

    def __call__(self, step: int) -> None:
        """Refresh the mined rows if it is time."""
        if step % EVERY:
            return
        entries = [
            Entry(self._any(self._states), self._any(self.buffer.candidates), -1)
            for _ in range(ASKED)
        ]
        with scaled(self.model, self.adapter_name, 0.0):
            teacher = ask(self.model, self.buffer, entries, self.size)
        student = ask(self.model, self.buffer, entries, self.size)
        change = (student - teacher).flatten(1).square().mean(1)
        self.buffer.clear("mined")
        for i in change.topk(min(KEPT, len(entries))).indices.tolist():
            answer = self.buffer.add_prediction(teacher[i])
            self.buffer.add_row("mined", entries[i].state, entries[i].text, answer)

    def state(self) -> dict[str, Any]:
        """What is mined, and what the next choices depend on, for a checkpoint."""
        entries = self.buffer.entries("mined")
        predictions = self.buffer.predictions(entries) if entries else None
        rows = [(entry.state, entry.text) for entry in entries]
        generator = self.generator.get_state()
        return {"generator": generator, "rows": rows, "predictions": predictions}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.generator.set_state(state["generator"])
        self.buffer.clear("mined")
        for i, (where, text) in enumerate(state["rows"]):
            answer = self.buffer.add_prediction(state["predictions"][i])
            self.buffer.add_row("mined", where, text, answer)

    def _any(self, items: list[int]) -> int:
        return items[int(torch.randint(len(items), (), generator=self.generator))]
