"""The training loop: rows of a replay buffer in, LoRA weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

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
INITS = ("auto", "lora", "closed_form")
RATE_TIMES_WIDTH = 0.64
"""Learning rate times the width of the adapted layers' input.

A step of Adam moves every weight by the learning rate, so it moves an answer by that times the
number of inputs. 0.64 is what the embedded model is measured with (5e-3 at width 128) and gives
8e-4 at width 768, Stable Diffusion 1, where it is not measured.
"""


@dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained.

    Args:
        rank: rank of the LoRA update.
        alpha: the update is scaled by alpha / rank; None: alpha = rank.
        target_modules: suffixes of the adapted layers; None: keys and values of cross-attention.
        init: how the adapter starts: "lora" without effect; "closed_form" with the linear map of
            the text that comes nearest (`closed_form`); "auto": "closed_form" where the adapted
            layers read nothing but the text.
        steps: most optimizer steps.
        batch_size: rows of each role (unlearn, retain) in one micro-batch.
        gradient_accumulation_steps: micro-batches in one step.
        learning_rate: peak of AdamW's; linear warm-up, then cosine. "auto": `RATE_TIMES_WIDTH`
            divided by the width of the adapted layers' input.
        max_grad_norm: gradients are clipped to this norm.
        sigma: scale of the divergence; "auto" puts the median initial s at `loss.MEDIAN_S`.
        retain: prompts whose pictures must stay; None: words of the vocabulary.
        retain_weight: weight of the retain loss against the unlearning one, which is scaled so
            that every divergence pulls equally at half the median initial difference; 0: nothing
            is recorded and computed to retain.
        trajectories: anchor images recorded; three times as many are recorded to retain.
        early_stop: stop once the mean squared difference from the anchor (the same scale for
            every f) is below this fraction of its start; 0: never.
        seed: of prompts, noise, initial weights and batches.
    """

    rank: int = 8
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    init: Literal["auto", "lora", "closed_form"] = "auto"
    steps: int = 400
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float | Literal["auto"] = "auto"
    max_grad_norm: float = 1.0
    sigma: float | Literal["auto"] = "auto"
    retain: Sequence[str] | None = None
    retain_weight: float = 2.0
    trajectories: int = 96
    early_stop: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("rank", "steps", "batch_size", "gradient_accumulation_steps", "trajectories")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        free = {"learning_rate": "auto", "alpha": None, "max_grad_norm": 1.0}
        for name, default in free.items():
            value = getattr(self, name)
            if value != default and not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} must be positive, got {value!r}")
        if not _is_number(self.retain_weight) or not 0 <= self.retain_weight < math.inf:
            raise ValueError(f"retain_weight must not be negative, got {self.retain_weight!r}")
        if not _is_number(self.early_stop) or not 0 <= self.early_stop < 1:
            raise ValueError(f"early_stop must lie in [0, 1), got {self.early_stop!r}")
        if self.init not in INITS:
            raise ValueError(f"unknown init {self.init!r}: choose {', '.join(INITS)}")


def settings(options: dict[str, Any]) -> tuple[TrainConfig, Performance]:
    """What keyword arguments say of the training and of the machine.

    Raises:
        TypeError: for a name that is a field of neither, with the fields.
    """
    own, machine = ([f.name for f in fields(kind)] for kind in (TrainConfig, Performance))
    for name in options:
        if name not in (*own, *machine):
            known = ", ".join((*own, *machine))
            raise TypeError(f"unknown option {name!r}: choose from {known}")
    config = TrainConfig(**{k: v for k, v in options.items() if k in own})
    return config, Performance(**{k: v for k, v in options.items() if k in machine})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
