"""Ask the frozen denoiser about recorded states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..pipelines.denoiser import predicted, sample_name
from ..pipelines.offload import placement
from ..utils.micro_batches import MicroBatches
from .replay_buffer import ReplayBuffer
from .rows import Entry, Part


def predict(model: nn.Module, calls: Sequence[Part]) -> Tensor:
    """What a denoiser predicts in several calls, in the order of their rows, (B, ...).

    Args:
        model: the denoiser.
        calls: see `ReplayBuffer.calls`; those without places are made, and not looked at.
    """
    name = sample_name(model)
    answers = [predicted(model(**call.inputs), call.inputs[name]) for call in calls]
    answers = [
        answer if call.places else answer[:0]  # which still takes part in the backward pass
        for answer, call in zip(answers, calls, strict=True)
    ]
    if len(answers) == 1:
        return answers[0]
    places = torch.tensor([place for call in calls for place in call.places])
    return torch.cat(answers)[places.argsort().to(answers[0].device)]


@torch.no_grad()
def ask(
    model: nn.Module, buffer: ReplayBuffer, entries: Sequence[Entry], size: int = 16
) -> Tensor:
    """What a denoiser, as it is, predicts at these states for these texts.

    Args:
        model: the denoiser.
        buffer: holds the states and texts.
        entries: (state, text) pairs; their predictions are not read.
        size: rows in one call, fewer if they do not fit the memory.

    Returns:
        Predictions on the CPU, (N, ...), float32.
    """
    where = placement(model)

    def answer(part: Sequence[Entry]) -> Tensor:
        return predict(model, buffer.calls(part, *where)).float().cpu()

    return torch.cat(MicroBatches(size).map(answer, entries))


def guided(conditional: Tensor, empty: Tensor, scale: float | Tensor) -> Tensor:
    """eps(empty) - scale (eps(target) - eps(empty)), as `NegativeGuidance` says."""
    return empty - scale * (conditional - empty)
