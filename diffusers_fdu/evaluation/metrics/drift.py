"""How much pictures changed that should not have: the same prompt and noise, before and after.

    pixel drift   = root mean squared difference of pixels, from 0 to 1
    feature drift = sum over layers of mean over places of |u - v|^2

with u and v the channels at one place, each scaled to unit length. The second is LPIPS (Zhang et
al., arXiv 1801.03924) with all weights 1 in place of its learned ones, and with any network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from .distances import as_pixels

BATCH = 64
EPSILON = 1e-10

Layers = Callable[[Tensor], Sequence[Tensor]]
"""From pictures (B, 3, H, W), uint8, to feature maps (B, C, h, w)."""


def pixel_drift(before: Sequence[Image], after: Sequence[Image]) -> Tensor:
    """Of each pair of pictures, (N,).

    Raises:
        ValueError: if their numbers differ.
    """
    _check(before, after)
    found = []
    for one, other in zip(before, after, strict=True):
        difference = (as_pixels([one]).float() - as_pixels([other]).float()) / 255
        found.append(difference.square().mean().sqrt())
    return torch.stack(found)


@torch.no_grad()
def feature_drift(before: Sequence[Image], after: Sequence[Image], layers: Layers) -> Tensor:
    """Of each pair of pictures, (N,).

    Args:
        before: pictures of one size.
        after: as many.
        layers: see `Layers`.

    Raises:
        ValueError: if their numbers differ.
    """
    _check(before, after)
    found = []
    for start in range(0, len(before), BATCH):
        part = slice(start, start + BATCH)
        maps = zip(layers(as_pixels(before[part])), layers(as_pixels(after[part])), strict=True)
        change = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in maps]
        found.append(torch.stack(change).sum(0).float().cpu())
    return torch.cat(found)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + EPSILON).sqrt()


def _check(before: Sequence[Image], after: Sequence[Image]) -> None:
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} pictures before and {len(after)} after")
