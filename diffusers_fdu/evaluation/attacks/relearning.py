"""Re-learning: how few steps on pictures of the target until it is back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ...adapters import lora as adapters
from ...pipelines.recorder import preserve_pipeline_state
from .attack import AttackOutcome, AttackTarget, share


@dataclass(frozen=True)
class Relearning:
    """A new LoRA on the unlearned model, trained on the original model's pictures of the target.

    Pictures are judged after each number of `steps`: success is that of the last, and the curve
    says how soon it comes. `batch` rows are drawn in a step, from so many `pictures`.
    """

    steps: Sequence[int] = (5, 10, 20, 40)
    batch: int = 16
    learning_rate: float = 1e-3
    rank: int = 4
    pictures: int = 16
    name: str = "re-learning"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        goal = victim.goal([""] * len(victim.prompts), seed, self.pictures)
        with preserve_pipeline_state(victim.pipe):
            inputs = victim.recorder().first_call(victim.prompts).inputs
        texts = {name: inputs.get(name) for name in goal.names}
        generator = torch.Generator().manual_seed(seed)
        curve, hits = [], [False]
        with _new_lora(victim.model, self.rank, seed) as parameters:
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
            for step in range(1, self.steps[-1] + 1):
                entries = goal.drawn(self.batch, generator)
                with torch.enable_grad():
                    loss = goal.loss(victim.model, entries, texts).mean()
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                if step in self.steps:
                    hits = victim.hits(victim.prompts, seed)
                    curve.append((float(step), share(hits)))
        rows = self.steps[-1] * self.batch
        budget = {"steps": self.steps[-1], "denoiser_rows": rows, "pictures": self.pictures}
        return AttackOutcome(hits, tuple(curve), budget=budget)


@contextmanager
def _new_lora(model: nn.Module, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """The trainable weights of a new LoRA, which is taken off again at the end."""
    state_before = adapters.snapshot(model)
    name = adapters.free_name("relearn", model)
    config = adapters.lora_config(model, rank, None, None)
    try:
        yield adapters.attach(model, name, config, seed)
    finally:
        adapters.remove(model, name, state_before)


@dataclass(frozen=True)
class Removal:
    """The adapter taken off: trivial, and the reason to fuse what is handed out."""

    name: str = "adapter removal"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        with victim.original() as pipe:
            return AttackOutcome(victim.hits(victim.prompts, seed, pipe))
