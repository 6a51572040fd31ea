"""Weights in 8 bits, which `emoji.loading.from_8_bits` restores."""

from __future__ import annotations

import torch
from torch import Tensor


def to_8_bits(name: str, value: Tensor) -> dict[str, Tensor]:
    """Store a weight as integers with a scale for each output channel; others as float16."""
    if value.dim() < 2 or not value.is_floating_point():
        return {name: value.half() if value.is_floating_point() else value}
    scale = value.float().flatten(1).abs().amax(1).clamp(min=1e-8) / 127
    scaled = value.float() / scale.reshape(-1, *[1] * (value.dim() - 1))
    return {name: scaled.round().to(torch.int8).contiguous(), f"{name}.scale": scale}
