"""Re-learning: how few steps on pictures of the target until it is back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ...adapters import lora as adapters
from ...pipelines.recorder import preserve_pipeline_state
from .attack import AttackOutcome, AttackTarget

NAME = "relearn"


@dataclass(frozen=True)
class Relearning:
    """A new LoRA on the unlearned model, trained on the original model's pictures of the target.

    Success is that of the last of `steps`; the curve says how soon it comes.

    Args:
        steps: after how many steps pictures are judged.
        batch: rows in a step.
        learning_rate: of AdamW.
        rank: of the LoRA.
        pictures: of the target.
    """

    steps: Sequence[int] = (5, 10, 20, 40)
    batch: int = 16
    learning_rate: float = 1e-3
    rank: int = 4
    pictures: int = 16
    name: str = "re-learning"

    @property
    def budget(self) -> Mapping[str, float]:
        """Training steps, and rows that the denoiser is asked in them."""
        rows = self.steps[-1] * self.batch
        return {"steps": self.steps[-1], "denoiser_rows": rows, "pictures": self.pictures}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        asked, curve, hits = attack_target.asked(attack_target.target), [], [False]
        goal = attack_target.goal([""] * len(asked), seed, self.pictures)
        with preserve_pipeline_state(attack_target.pipe):
            inputs = attack_target.recorder().first_call(asked).inputs
        texts = {name: inputs.get(name) for name in goal.names}
        generator = torch.Generator().manual_seed(seed)
        with attached(attack_target.model, self.rank, seed) as parameters:
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
            for step in range(1, self.steps[-1] + 1):
                entries = goal.drawn(self.batch, generator)
                with torch.enable_grad():
                    loss = goal.loss(attack_target.model, entries, texts).mean()
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                if step in self.steps:
                    hits = attack_target.hits(asked, seed)
                    curve.append((float(step), sum(hits) / len(hits)))
        return AttackOutcome(hits, tuple(curve))


@contextmanager
def attached(model: nn.Module, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """A new LoRA, trainable, on a denoiser, which is as it was afterwards."""
    before = adapters.snapshot(model)
    name = adapters.free_name(NAME, model)
    config = adapters.lora_config(model, rank, None, None)
    try:
        yield adapters.attach(model, name, config, seed)
    finally:
        adapters.remove(model, name, before)


@dataclass(frozen=True)
class Removal:
    """The adapter taken off: trivial, and the reason to fuse what is handed out."""

    name: str = "adapter removal"

    @property
    def budget(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        with attack_target.original() as pipe:
            return AttackOutcome(
                attack_target.hits(attack_target.asked(attack_target.target), seed, pipe)
            )
