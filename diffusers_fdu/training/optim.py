"""The optimizer: AdamW, its learning rate, and clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .callbacks import StepRecord


def make_optimizer(
    parameters: Sequence[nn.Parameter], learning_rate: float, kind: str
) -> torch.optim.Optimizer:
    """AdamW without weight decay, which would pull towards the model that remembers."""
    if kind == "adamw_8bit":
        import bitsandbytes  # an extra

        return bitsandbytes.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=0.0)
    is_cuda = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0, fused=is_cuda or None)


WARMUP = 0.05  # share of the steps


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


def check_finite(record: StepRecord, largest_gradient: float, is_scaled: bool) -> None:
    """Refuse a step whose figures are not finite.

    Args:
        record: of the step.
        largest_gradient: largest absolute element of its gradients.
        is_scaled: whether the gradients are those of a scaled loss, which may overflow.

    Raises:
        FloatingPointError: with what could be changed.
    """
    if not math.isfinite(record.loss):
        raise FloatingPointError(
            f"the loss is {record.loss} at step {record.step}: "
            "lower learning_rate, or use mixed_precision='no'"
        )
    if not is_scaled and not math.isfinite(largest_gradient):
        raise FloatingPointError(
            f"a gradient is {largest_gradient} at step {record.step}: set another sigma"
        )
