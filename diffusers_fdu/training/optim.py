"""The optimizer of an adapter's weights, and what happens to their gradients on the way to it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

WARMUP = 0.05  # share of the steps


def make_optimizer(
    parameters: Sequence[nn.Parameter], learning_rate: float, kind: str
) -> torch.optim.Optimizer:
    """AdamW without weight decay, which would pull towards the model that remembers."""
    if kind == "adamw_8bit":
        import bitsandbytes  # an extra

        return bitsandbytes.optim.AdamW8bit(parameters, lr=learning_rate, weight_decay=0.0)
    is_cuda = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0, fused=is_cuda or None)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over `WARMUP` of the steps, then a cosine to 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """A weight's gradient; zeros if it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def project(gradient: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Take the part of a gradient g that points against another, h, out of it, in place.

        g <- g - min(<g, h>, 0) / |h|^2 h

    over all tensors as one vector (Yu et al., "Gradient Surgery for Multi-Task Learning", arXiv
    2001.06782, here in one direction: the retain gradient stays whole). Both have to be complete
    gradients, summed over micro-batches and processes before.
    """
    products = [(g.float() * h.float()).sum() for g, h in zip(gradient, other, strict=True)]
    dot = torch.stack(products).sum()
    square = torch.stack(torch._foreach_norm(list(other))).float().norm().square()
    share = dot.clamp(max=0) / square.clamp(min=torch.finfo(torch.float32).tiny)
    torch._foreach_sub_(list(gradient), [h * share for h in other])


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm, and return their largest absolute element, ().

    It is NaN or infinite if any element is.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    # All tensors go in one launch each, since a UNet's adapter has hundreds. The largest element
    # is divided out first: gradients of exponential divergences would overflow the norm's square.
    largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
    torch._foreach_div_(gradients, largest.clamp(min=torch.finfo(largest.dtype).tiny))
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, torch.minimum(largest, max_norm / norm.clamp(min=1.0)))
    return largest
