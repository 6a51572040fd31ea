"""Whether gradients reach an adapter through the frozen layers after it, and gradient surgery.

Some kernels, those of quantised layers above all, compute without gradients. Weights in front of
such a layer would stay as they are, without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

REASON = "frozen layers after it compute without gradients, as kernels made for inference do"


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Let PyTorch choose among its other attention kernels for a while.

    On an H200 with PyTorch 2.11, which prefers cuDNN's there, its backward pass failed for
    FLUX, and gave NaN for small heads; see docs/hardware.md.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def check_depends(value: Tensor) -> None:
    """Refuse a loss that no weight has a part in.

    Raises:
        RuntimeError: if it has no gradient.
    """
    if not value.requires_grad:
        raise RuntimeError(f"no gradient reaches the adapter: {REASON}")


def warn_if_left_out(parameters: Sequence[nn.Parameter]) -> None:
    """Say, as a RuntimeWarning, how many weights got no gradient."""
    missing = sum(p.grad is None for p in parameters)
    if missing:
        warnings.warn(
            f"no gradient reaches {missing} of the adapter's {len(parameters)} weights, which "
            f"stay as they are: {REASON}, or the denoiser does not use them",
            RuntimeWarning,
            stacklevel=2,
        )


def project(gradient: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Take the part of a gradient away that points against another, in place.

        g <- g - min(<g, h>, 0) / |h|^2 h

    over all tensors as one vector (Yu et al., "Gradient Surgery for Multi-Task Learning", arXiv
    2001.06782, here in one direction: the retain gradient stays whole). Both have to be whole
    gradients: summed over micro-batches and processes before.

    Args:
        gradient: changed.
        other: of the same shapes.
    """
    dot = torch.stack(
        [(g.float() * h.float()).sum() for g, h in zip(gradient, other, strict=True)]
    ).sum()
    square = torch.stack(torch._foreach_norm(list(other))).float().norm().square()
    share = dot.clamp(max=0) / square.clamp(min=torch.finfo(torch.float32).tiny)
    torch._foreach_sub_(list(gradient), [h * share for h in other])


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Its gradient; zeros if it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
