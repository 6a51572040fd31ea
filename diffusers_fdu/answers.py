"""Ask the frozen denoiser about recorded states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .performance import float_parameter
from .replay import Entry, ReplayBuffer


@torch.no_grad()
def ask(
    model: nn.Module, buffer: ReplayBuffer, entries: Sequence[Entry], size: int = 16
) -> Tensor:
    """What a denoiser, as it is, predicts at these states for these texts.

    Args:
        model: the denoiser.
        buffer: holds the states and texts.
        entries: (state, text) pairs; their predictions are not read.
        size: rows in one call.

    Returns:
        Predictions on the CPU, (N, ...), float32.
    """
    parameter = float_parameter(model)
    answers = []
    for start in range(0, len(entries), size):
        call = buffer.call(entries[start : start + size], parameter.device, parameter.dtype)
        answers.append(model(**call)[0].float().cpu())
    return torch.cat(answers)


def guided(conditional: Tensor, empty: Tensor, scale: float | Tensor) -> Tensor:
    """eps(empty) - scale (eps(target) - eps(empty)), as `NegativeGuidance` says."""
    return empty - scale * (conditional - empty)
