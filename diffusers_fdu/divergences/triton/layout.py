"""How predictions and masks lie in memory, as the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """A mask as the kernels read it: mask[b stride + i // every % period] for element i of b.

    Args:
        mask: float32, float16 or bfloat16 values, contiguous.
        stride: elements of the mask a sample; 0 if all samples share one.
        every: elements of the prediction for one of the mask.
        period: elements of the mask before it repeats.
    """

    mask: Tensor | None
    stride: int = 0
    every: int = 1
    period: int = 1


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def paired(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dense memory layout: the prediction's, if it has one."""
    if _is_channels_last(pred):
        return pred, target.contiguous(memory_format=torch.channels_last)
    return pred.contiguous(), target.contiguous()


def mask_layout(mask: Tensor | None, pred: Tensor) -> Layout:
    """How a mask that broadcasts to the prediction lies against its memory."""
    if mask is None:
        return Layout(None)
    if not mask.is_floating_point() or mask.dtype == torch.float64:
        mask = mask.float()
    mask = mask.reshape((1,) * (pred.dim() - mask.dim()) + mask.shape)
    order = [*range(pred.dim())]
    if _is_channels_last(pred):
        order = [0, 2, 3, 1]
    shape, sizes = [mask.shape[d] for d in order[1:]], [pred.shape[d] for d in order[1:]]
    present = [d for d, n in enumerate(shape) if n > 1]
    low, high = (present[0], present[-1] + 1) if present else (len(sizes), len(sizes))
    if shape[low:high] != sizes[low:high]:  # holes inside: fill them
        mask, low, high = mask.expand_as(pred), 0, len(sizes)
    mask = mask.permute(order).contiguous()
    period, every = 1, 1
    for n in sizes[low:high]:
        period *= n
    for n in sizes[high:]:
        every *= n
    return Layout(mask, period if mask.shape[0] > 1 else 0, every, period)
