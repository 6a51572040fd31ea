"""The training loop: rows of a replay buffer in, LoRA weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .loss import DivergenceLoss
from .replay import ReplayBuffer, Role, Row

WARMUP = 0.05  # share of the steps
SMOOTHING = 0.8  # of the difference that early stop looks at
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
        steps: most optimizer steps.
        batch_size: rows of each role (unlearn, retain) in one micro-batch.
        gradient_accumulation_steps: micro-batches in one step.
        learning_rate: peak of AdamW's; linear warm-up, then cosine. "auto": `RATE_TIMES_WIDTH`
            divided by the width of the adapted layers' input.
        max_grad_norm: gradients are clipped to this norm.
        mixed_precision: "no", "fp16" or "bf16" autocast.
        sigma: scale of the divergence; "auto" puts the median initial s at `loss.MEDIAN_S`.
        retain: prompts whose pictures must stay; None: words of the vocabulary.
        retain_weight: weight of the retain loss against the unlearning one, which is scaled so
            that every divergence pulls equally at half the median initial difference.
        trajectories: anchor images recorded; three times as many are recorded to retain.
        early_stop: stop once the mean squared difference from the anchor (the same scale for
            every f) is below this fraction of its start; 0: never.
        seed: of prompts, noise, initial weights and batches.
    """

    rank: int = 8
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    steps: int = 400
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float | Literal["auto"] = "auto"
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
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
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}")

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> TrainConfig:
        """A config from keyword arguments.

        Raises:
            TypeError: for a name that is no field, with the fields.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"unknown option {name!r}: choose from {', '.join(known)}")
        return cls(**options)


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
    return torch.cat([loss.distance(*_answers(model, buffer, chunk)) for chunk in chunks])


def _answers(
    model: nn.Module,
    buffer: ReplayBuffer,
    rows: Sequence[Row],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """What the student predicts on these rows, and what the teacher did."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    kwargs, target = buffer.batch(rows, parameter.device, parameter.dtype)
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
    largest = torch.stack([g.abs().max() for g in gradients]).max()
    tiny = torch.finfo(largest.dtype).tiny
    for gradient in gradients:
        gradient.div_(largest.clamp(min=tiny))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    wanted = torch.minimum(largest, max_norm / norm.clamp(min=1.0))
    for gradient in gradients:
        gradient.mul_(wanted)
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

    Returns:
        A record of every step.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; nothing was updated
            with it.
        ValueError: if the divergence has no slope at this sigma.
    """
    peak = float(config.learning_rate)
    optimizer = torch.optim.AdamW(parameters, peak, weight_decay=0.0)
    generator = torch.Generator().manual_seed(config.seed)
    autocast, scaler = _precision(model, config.mixed_precision)
    start = distance / float(loss.sigma) ** 2
    half = start.median().reshape(1) / 4  # s is a square
    slope = loss.divergence.dphi(half).item()
    if not 0 < slope < math.inf:
        raise ValueError(
            f"{loss.divergence.name} has slope {slope} at sigma={loss.sigma}, where the median "
            f"s is {start.median().item():.3g}: use sigma='auto', or another sigma"
        )
    keep = DivergenceLoss("kl", loss.sigma, loss.reduction, loss.kernel)
    first = start.mean().item()
    smooth, history = first, []
    bar = tqdm(range(config.steps), desc="unlearn", disable=not progress, unit="step")
    for step in bar:
        rate = peak * learning_rate_factor(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        parts = []
        for _ in range(config.gradient_accumulation_steps):
            rows = _random_rows(buffer, config.batch_size, generator)
            answer, target = _answers(model, buffer, rows, autocast)
            pulled, kept = answer.split(config.batch_size)
            wanted, own = target.split(config.batch_size)
            unlearn, s = loss.with_distance(pulled, wanted)
            # Rows to retain start at 0, where every profile has the shape of kl.
            retain, _ = keep.with_distance(kept, own)
            # In units of the slope at half the median difference, so that f changes the shape
            # of the pull and not its strength against the retain loss.
            objective = unlearn / (2 * slope) + config.retain_weight * retain
            scaler.scale(objective / config.gradient_accumulation_steps).backward()
            parts.append(torch.stack([objective, unlearn, s.mean(), retain]).detach())
        scaler.unscale_(optimizer)
        largest = clip_gradients(parameters, config.max_grad_norm)
        # Read together, since every read waits for the device.
        figures = torch.cat([torch.stack(parts).mean(0), largest[None]])
        total, divergence, mean_s, retained, peak_gradient = figures.tolist()
        record = StepRecord(step, total, divergence, mean_s, retained, rate)
        _check_finite(record, peak_gradient, scaler.is_enabled())
        scaler.step(optimizer)  # leaves out steps whose gradients overflowed in float16
        scaler.update()
        history.append(record)
        shown = {name: f"{getattr(record, name):.4f}" for name in SHOWN}
        bar.set_postfix(shown)
        if callback is not None:
            callback(record)
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * record.distance
        if smooth < config.early_stop * first:
            break
    bar.close()
    return history


def _random_rows(buffer: ReplayBuffer, size: int, generator: torch.Generator) -> list[Row]:
    """As many rows of each role, those to unlearn first."""
    rows: list[Row] = []
    for role in ROLES:
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


def _precision(
    model: nn.Module, mixed_precision: str
) -> tuple[Callable[[], AbstractContextManager], torch.amp.GradScaler]:
    """Autocast for the model's device, and the scaling that float16 gradients need."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    device = parameter.device.type
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision)
    is_half = dtype == torch.float16 or (dtype is None and parameter.dtype == torch.float16)
    autocast = partial(torch.autocast, device, dtype=dtype, enabled=dtype is not None)
    return autocast, torch.amp.GradScaler(device, enabled=is_half)
