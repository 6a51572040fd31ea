"""Passes of the denoiser whose memory and time are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..pipelines.denoiser import extract_prediction, sample_name


@dataclass(frozen=True)
class Pass:
    """A pass of the denoiser over some inputs.

    Args:
        model: the denoiser.
        autocast: its precision.
        trained: weights whose gradients are computed; none: only forward.
    """

    model: nn.Module
    autocast: Callable[[], AbstractContextManager]
    trained: Sequence[nn.Parameter] = ()

    def __call__(self, inputs: dict[str, Any]) -> None:
        """Run it."""
        with torch.set_grad_enabled(bool(self.trained)), self.autocast():
            output = extract_prediction(self.model(**inputs), inputs[sample_name(self.model)])
        if self.trained:
            loss = output.float().square().mean()
            del output
            torch.autograd.grad(loss, self.trained, allow_unused=True)


def clocked(function: Callable[[Any], None], inputs: Any, device: torch.device) -> float:
    """Seconds that a call takes on a device, which is waited for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    started = time.monotonic()
    function(inputs)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.monotonic() - started
