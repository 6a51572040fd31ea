"""What every diffusers denoiser has: a name on its pipe, a noised input, a time, a prediction."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

DENOISERS = ("unet", "transformer", "transformer_2")
TIMES = ("timestep", "t")


def denoiser_names(pipe: Any) -> list[str]:
    """The pipe's attributes that hold denoisers; a ValueError if it has none.

    Pipelines with a `transformer_2` (Wan 2.2) ask it in the steps of little noise.
    """
    names = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    if not names:
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser: expected a diffusers pipeline with a `unet` "
            "or a `transformer`"
        )
    return names


def denoiser_name(pipe: Any, component: str | None = None) -> str:
    """The attribute that holds the denoiser: `component`, or by default the pipe's first."""
    names = denoiser_names(pipe)
    if component is not None and component not in names:
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser {component!r}: choose {', '.join(names)}"
        )
    return component or names[0]


def sample_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that is noised: its first."""
    return next(iter(inspect.signature(model.forward).parameters))


def timestep_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that says how noised it is."""
    parameters = inspect.signature(model.forward).parameters
    if names := [name for name in TIMES if name in parameters]:
        return names[0]
    raise ValueError(
        f"{type(model).__name__} has no timestep among its arguments {', '.join(parameters)}"
    )


def extract_prediction(output: Any, sample: Any) -> Tensor:
    """The prediction in what a denoiser returned, as one tensor (B, C, ...).

    Samples and predictions may be lists of tensors (C, ...). Models that learn a variance predict
    it in as many channels more, which are dropped, as their pipelines do.
    """
    prediction = output[0]
    if isinstance(prediction, list | tuple):
        prediction = torch.stack(list(prediction))
    channels = (sample if torch.is_tensor(sample) else sample[0][None]).shape[1]
    return prediction[:, :channels] if prediction.shape[1] == 2 * channels else prediction
