"""Has enough been recorded? More states are of use as long as they change the gradient.

Let g_1 and g_2 be the mean gradients of the objective with respect to an adapter's weights at its
start without effect, over the rows to unlearn of the first and of the second half of the recorded
pictures (rows to retain have no gradient there). Both halves are drawn alike, so

    E |g_1 - g_2|^2 = 4 Var (g_1 + g_2) / 2

and where the two agree, more pictures would change their mean no more. A few calls of the denoiser
estimate the cosine between them without bias, as U-statistics over the calls' gradients: products
of a call with itself, which carry the noise of its few rows, are left out.

    C_ij = mean <gradient of a call on half i, gradient of another call on half j>
    cosine = C_12 / sqrt(C_11 C_22)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import lora as adapters
from ..adapters.target_modules import has_cross_attention
from ..data.replay_buffer import Halves, ReplayBuffer, Row
from ..data.sampler import Batch, Sampler
from ..divergences.loss import DivergenceLoss
from ..pipelines.offload import is_streamed, onloaded, placement, streamed
from ..settings import Settings
from ..utils.micro_batches import MicroBatches
from .acceleration import checkpointed, precision, set_aside
from .objective import Objective, answer_batch, initial_distances

CALLS, SIZE = 8, 4  # calls of the denoiser on each half, rows in each
ENOUGH = 0.9
"""Cosine from which on more pictures say nothing new, by `examples/studies/states.py`: for dog and
banana 0.98 and more at 16 pictures already; for blob and fluent 0.01 and 0.63 at 16, 0.80 and 0.83
at 32, and there more pictures do lower the distance on held-out states."""
SCALE = 1024.0  # keeps gradients of half precision from 0; the cosine does not know it
NAME = "fdu-agreement"


def starts_in_closed_form(settings: Settings, model: nn.Module) -> bool:
    """Whether recording may stop early, since the adapter's start knows the texts of all pictures.

    Args:
        settings: of the training.
        model: its denoiser.
    """
    return (
        settings.data.trajectories == "auto"
        and settings.train.init != "lora"
        and has_cross_attention(model)
    )


@dataclass(frozen=True)
class Agreement:
    """Tells whether two halves of a recording agree, for each concept.

    Args:
        pipe: the pipeline.
        model: its denoiser, without the new adapter.
        settings: of the training.
    """

    pipe: Any
    model: nn.Module
    settings: Settings

    def __call__(self, buffer: ReplayBuffer, halves: Sequence[Halves]) -> bool:
        """Whether to stop recording.

        Args:
            buffer: what was recorded so far.
            halves: of each concept, the rows of the two halves of its pictures.
        """
        with set_aside(self.pipe, self.model, self.settings.offloads):
            return all(self.cosine(buffer, own) >= ENOUGH for own in halves)

    def cosine(self, buffer: ReplayBuffer, halves: Halves) -> float:
        """Between the halves' mean gradients; 0 where one cannot be told from noise."""
        seed = self.settings.train.seed
        sampler = Sampler(self.model, buffer, SIZE, seed, retains=False)
        loss = DivergenceLoss("kl", "auto")
        rows = 2 * self.settings.performance.micro_batch(self.settings.train.batch_size)
        distances = initial_distances(self.model, sampler, loss, rows)
        objective = Objective(loss, distances, 0.0)
        generator = torch.Generator().manual_seed(seed)
        with self._attached() as parameters:
            found = []
            for half in halves:
                places = torch.randint(len(half), (CALLS, SIZE), generator=generator).tolist()
                calls = [[half[i] for i in own] for own in places]
                own = [self._gradient(parameters, sampler, objective, call) for call in calls]
                found.append(torch.stack(own))
        first, second = found
        within = max(_product(first), 0.0) * max(_product(second), 0.0)
        cross = (first @ second.T).mean().item()
        return cross / within**0.5 if within else 0.0

    def _gradient(
        self,
        parameters: Sequence[nn.Parameter],
        sampler: Sampler,
        objective: Objective,
        rows: Sequence[Row],
    ) -> Tensor:
        """Of the objective on these rows, (P,) on the CPU."""
        chosen = self.settings.performance
        autocast, _ = precision(self.model, chosen.mixed_precision)

        def part(own: Sequence[Row]) -> Tensor:
            batch: Batch = sampler.batch(own, [])
            with torch.enable_grad():
                value, _ = objective(answer_batch(self.model, batch, autocast), batch)
                parts = torch.autograd.grad(SCALE * value, list(parameters))
            return torch.cat([one.flatten() for one in parts]) * (len(own) / len(rows))

        limit = self.settings.roles * chosen.micro_batch(self.settings.train.batch_size)
        found = MicroBatches(min(SIZE, limit)).map(part, rows)
        return torch.stack(found).sum(0).double().cpu()

    @contextmanager
    def _attached(self) -> Iterator[list[nn.Parameter]]:
        """A new adapter for a while, without effect; its weights."""
        model, train = self.model, self.settings.train
        before = adapters.snapshot(model)
        device, streams = placement(model).device, is_streamed(model)
        config = adapters.lora_config(model, train.rank, train.alpha, train.target_modules)
        try:
            with onloaded(model):
                parameters = adapters.attach(model, NAME, config, train.seed)
                with (
                    streamed(model, device, streams),
                    checkpointed(model, self.settings.performance.gradient_checkpointing),
                ):
                    yield parameters
                adapters.finish(model, NAME, before)
        finally:
            adapters.remove(model, NAME, before)


def _product(gradients: Tensor) -> float:
    """Mean product of two different ones."""
    count = len(gradients)
    gram = gradients @ gradients.T
    return ((gram.sum() - gram.trace()) / (count * (count - 1))).item()
