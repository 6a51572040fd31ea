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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import lora as adapters
from ..adapters.target_modules import has_cross_attention
from ..data.replay_buffer import Halves, ReplayBuffer, Row
from ..data.sampler import Sampler
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
    """Whether recording may stop early, since the start knows the texts of all pictures."""
    return (
        settings.data.trajectories == "auto"
        and settings.train.init != "lora"
        and has_cross_attention(model)
    )


@dataclass(frozen=True)
class Agreement:
    """Tells whether two halves of a recording agree; the model is without the new adapter."""

    pipe: Any
    model: nn.Module
    settings: Settings

    def __call__(self, buffer: ReplayBuffer, halves: Sequence[Halves]) -> bool:
        """Whether recording may stop: whether the halves of every concept's pictures agree."""
        with set_aside(self.pipe, self.model, self.settings.offloads):
            return all(self.cosine(buffer, half_rows) >= ENOUGH for half_rows in halves)

    def cosine(self, buffer: ReplayBuffer, halves: Halves) -> float:
        """Cosine between the halves' mean gradients; 0 where one cannot be told from noise."""
        train, performance = self.settings.train, self.settings.performance
        sampler = Sampler(self.model, buffer, SIZE, train.seed, retains=False)
        loss, size = DivergenceLoss("kl", "auto"), performance.micro_batch(train.batch_size)
        distances = initial_distances(self.model, sampler, loss, 2 * size)
        objective = Objective(loss, distances, 0.0)
        autocast, _ = precision(self.model, performance.mixed_precision)
        micro = MicroBatches(min(SIZE, self.settings.roles * size))
        generator = torch.Generator().manual_seed(train.seed)

        def part_of_gradient(rows: Sequence[Row]) -> Tensor:
            batch = sampler.batch(rows, [])
            with torch.enable_grad():
                value, _ = objective(answer_batch(self.model, batch, autocast), batch)
                gradients = torch.autograd.grad(SCALE * value, parameters)
            return torch.cat([g.flatten() for g in gradients]) * (len(rows) / SIZE)

        half_gradients = []
        with self._attached() as parameters:
            for half in halves:
                places = torch.randint(len(half), (CALLS, SIZE), generator=generator).tolist()
                calls = [micro.map(part_of_gradient, [half[i] for i in call]) for call in places]
                sums = [torch.stack(parts).sum(0).double().cpu() for parts in calls]
                half_gradients.append(torch.stack(sums))
        first, second = half_gradients
        within = max(_product(first), 0.0) * max(_product(second), 0.0)
        across = (first @ second.T).mean().item()
        return across / within**0.5 if within else 0.0

    @contextmanager
    def _attached(self) -> Iterator[list[nn.Parameter]]:
        """Yield the weights of a new adapter without effect, which is there for a while."""
        model, train = self.model, self.settings.train
        state_before = adapters.snapshot(model)
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
                adapters.finish(model, NAME, state_before)
        finally:
            adapters.remove(model, NAME, state_before)


def _product(gradients: Tensor) -> float:
    """Mean product of two different gradients."""
    count = len(gradients)
    gram = gradients @ gradients.T
    return ((gram.sum() - gram.trace()) / (count * (count - 1))).item()
