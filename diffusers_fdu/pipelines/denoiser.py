"""What every diffusers denoiser has: a name on its pipe, a noised input, a time, an answer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

DENOISERS = ("unet", "transformer", "transformer_2")
TIMES = ("timestep", "t")


def denoiser_names(pipe: Any) -> list[str]:
    """The pipe's attributes that hold denoisers, see `DENOISERS`.

    Pipelines with a `transformer_2` (Wan 2.2) ask it in the steps of little noise.

    Raises:
        ValueError: if the pipe has none.
    """
    found = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    if not found:
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser: expected a diffusers pipeline with a `unet` "
            "or a `transformer`"
        )
    return found


def denoiser_name(pipe: Any, component: str | None = None) -> str:
    """The attribute that is wanted; None: the first.

    Raises:
        ValueError: if the pipe has no such denoiser, or none at all.
    """
    found = denoiser_names(pipe)
    if component is not None and component not in found:
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser {component!r}: choose {', '.join(found)}"
        )
    return component or found[0]


def sample_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that is noised: its first."""
    return next(iter(inspect.signature(model.forward).parameters))


def timestep_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that says how noised it is.

    Raises:
        ValueError: if none of `TIMES` is an argument.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in TIMES:
        if name in parameters:
            return name
    raise ValueError(
        f"{type(model).__name__} has no timestep among its arguments {', '.join(parameters)}"
    )


def predicted(output: Any, sample: Any) -> Tensor:
    """A denoiser's answer as one tensor, (B, C, ...).

    Models that learn a variance predict it in as many channels more, which are dropped, as their
    pipelines do.

    Args:
        output: what it returned: a tuple of the answer, a tensor or a list of tensors (C, ...).
        sample: what was noised: a tensor (B, C, ...) or a list of tensors (C, ...).
    """
    answer = output[0]
    if isinstance(answer, list | tuple):
        answer = torch.stack(list(answer))
    channels = (sample if torch.is_tensor(sample) else sample[0][None]).shape[1]
    return answer[:, :channels] if answer.shape[1] == 2 * channels else answer
