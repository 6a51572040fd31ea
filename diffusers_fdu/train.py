"""The training loop: rows of a replay buffer in, LoRA weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import TrainConfig
from .loss import DivergenceLoss
from .objective import Objective
from .performance import (
    Performance,
    checkpointed,
    compiled,
    float_parameter,
    make_optimizer,
    precision,
)
from .replay import ReplayBuffer, Role, Row

WARMUP = 0.05  # share of the steps
SMOOTHING = 0.8  # of the difference that early stop looks at


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


SHOWN = ("loss", "divergence", "retain")  # beside the progress bar

ROLES: tuple[Role, Role] = ("unlearn", "retain")

Batch = tuple[dict[str, Any], Tensor]
"""A denoiser call's keyword arguments, and the predictions to reach."""

Callback = Callable[[StepRecord], None]


@torch.no_grad()
def initial_distance(
    model: nn.Module, buffer: ReplayBuffer, loss: DivergenceLoss, size: int = 16
) -> Tensor:
    """Distances of the frozen model to the anchor on up to 64 rows spread over the buffer.

    Args:
        model: the denoiser, no new adapter on it.
        buffer: what was recorded.
        loss: measures the distance, before sigma.
        size: rows in one call of the denoiser.
    """
    count = buffer.count("unlearn")
    spread = torch.linspace(0, count - 1, min(64, count)).round().long().tolist()
    rows: list[Row] = [("unlearn", i) for i in spread]
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return torch.cat([loss.distance(*_answers(model, _batch(model, buffer, c))) for c in chunks])


def _batch(model: nn.Module, buffer: ReplayBuffer, rows: Sequence[Row]) -> Batch:
    parameter = float_parameter(model)
    return buffer.batch(rows, parameter.device, parameter.dtype)


def _answers(
    model: nn.Module,
    batch: Batch,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """What the student predicts on a batch, and what the teacher did."""
    kwargs, target = batch
    with autocast():
        answer = model(**kwargs)[0]
    return answer, target.to(answer.device)  # offloading moves the answer


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over `WARMUP` of the steps, then a cosine to 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm; exponential divergences would overflow its square.

    Returns:
        The largest absolute element before, (); NaN or infinite if any is.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    # All tensors in one launch each: a UNet's adapter has hundreds.
    largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
    torch._foreach_div_(gradients, largest.clamp(min=torch.finfo(largest.dtype).tiny))
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, torch.minimum(largest, max_norm / norm.clamp(min=1.0)))
    return largest


def train(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    buffer: ReplayBuffer,
    loss: DivergenceLoss,
    distance: Tensor,
    config: TrainConfig,
    callback: Callback | None = None,
    progress: bool = True,
    performance: Performance | None = None,
) -> list[StepRecord]:
    """Train adapter weights until the divergence has fallen, or the steps are used up.

    Args:
        model: the denoiser, its adapter active.
        parameters: the adapter's weights, float32.
        buffer: what to unlearn and what to retain.
        loss: calibrated: its sigma is a number.
        distance: see `initial_distance`.
        config: see `TrainConfig`; its learning rate is a number.
        callback: called after every step.
        progress: show a progress bar.
        performance: see `Performance`.

    Returns:
        A record of every step.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; nothing was updated
            with it.
        ValueError: if the divergence has no slope at this sigma.
    """
    performance = performance or Performance()
    objective = Objective(loss, distance, config.retain_weight)
    generator = torch.Generator().manual_seed(config.seed)
    roles = ROLES if config.retain_weight else ROLES[:1]

    def draw() -> Batch:
        return _batch(model, buffer, _random_rows(buffer, roles, config.batch_size, generator))

    first = draw()

    def trial() -> None:
        answer, target = _answers(model, first, precision(model, performance.mixed_precision)[0])
        objective(answer, target, config.batch_size)[0].backward()

    with (
        checkpointed(model, performance.gradient_checkpointing),
        compiled(model, performance.compile, trial),
    ):
        loop = _Loop(model, parameters, objective, config, performance)
        return loop.run(first, draw, callback, progress)


class _Loop:
    """The optimizer's steps."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        objective: Objective,
        config: TrainConfig,
        performance: Performance,
    ) -> None:
        self.model, self.parameters = model, parameters
        self.objective, self.config = objective, config
        self.peak = float(config.learning_rate)
        self.optimizer = make_optimizer(parameters, self.peak, performance.optimizer)
        self.autocast, self.scaler = precision(model, performance.mixed_precision)

    def run(
        self,
        batch: Batch,
        draw: Callable[[], Batch],
        callback: Callback | None,
        progress: bool,
    ) -> list[StepRecord]:
        """Steps from this batch on, until early stop."""
        smooth, seen = 0.0, 0.0  # an average of the last steps, and the weight in it
        history: list[StepRecord] = []
        bar = tqdm(range(self.config.steps), "unlearn", disable=not progress, unit="step")
        for step in bar:
            record, batch = self._step(step, batch, draw)
            history.append(record)
            bar.set_postfix({name: f"{getattr(record, name):.4f}" for name in SHOWN})
            if callback is not None:
                callback(record)
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * record.distance
            seen = SMOOTHING * seen + (1 - SMOOTHING)
            if smooth < self.config.early_stop * self.objective.first * seen:
                break
        bar.close()
        return history

    def _step(
        self, step: int, batch: Batch, draw: Callable[[], Batch]
    ) -> tuple[StepRecord, Batch]:
        config, scaler = self.config, self.scaler
        rate = self.peak * learning_rate_factor(step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        parts = []
        for _ in range(config.gradient_accumulation_steps):
            answer, target = _answers(self.model, batch, self.autocast)
            value, figures = self.objective(answer, target, config.batch_size)
            scaler.scale(value / config.gradient_accumulation_steps).backward()
            parts.append(figures)
            batch = draw()  # the next one is gathered and sent while the device works
        scaler.unscale_(self.optimizer)
        largest = clip_gradients(self.parameters, config.max_grad_norm)
        # Read together, since every read waits for the device.
        read = torch.cat([torch.stack(parts).mean(0), largest[None]]).tolist()
        total, divergence, mean_s, retained, peak_gradient = read
        record = StepRecord(step, total, divergence, mean_s, retained, rate)
        _check_finite(record, peak_gradient, scaler.is_enabled())
        scaler.step(self.optimizer)  # leaves out steps whose gradients overflowed in float16
        scaler.update()
        return record, batch


def _random_rows(
    buffer: ReplayBuffer, roles: Sequence[Role], size: int, generator: torch.Generator
) -> list[Row]:
    """As many rows of each role."""
    rows: list[Row] = []
    for role in roles:
        picked = torch.randint(buffer.count(role), (size,), generator=generator)
        rows += [(role, i) for i in picked.tolist()]
    return rows


def _check_finite(record: StepRecord, largest_gradient: float, is_scaled: bool) -> None:
    if not math.isfinite(record.loss):
        raise FloatingPointError(
            f"the loss is {record.loss} at step {record.step}: "
            "lower learning_rate, or use mixed_precision='no'"
        )
    if not is_scaled and not math.isfinite(largest_gradient):
        raise FloatingPointError(
            f"a gradient is {largest_gradient} at step {record.step}: set another sigma"
        )
