"""What every diffusers denoiser has: a name on its pipe, a noised input, a time, a prediction.

Schedulers count time from the number of training timesteps, pure noise, down to 0. Denoisers are
given that, or its share of the whole, or what is left of the whole; one number for each row, or
one for each token.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DENOISERS = ("unet", "transformer", "transformer_2")


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
        choices = ", ".join(names)
        raise ValueError(f"{type(pipe).__name__} has no denoiser {component!r}: choose {choices}")
    return component or names[0]


def sample_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that is noised: its first."""
    return next(iter(inspect.signature(model.forward).parameters))


def timestep_name(model: nn.Module) -> str:
    """Name of the denoiser's argument that says how noised it is."""
    parameters = inspect.signature(model.forward).parameters
    if names := [name for name in ("timestep", "t") if name in parameters]:
        return names[0]
    raise ValueError(
        f"{type(model).__name__} has no timestep among its arguments {', '.join(parameters)}"
    )


def extract_prediction(output: Any, sample: Any) -> Tensor:
    """The prediction in what a denoiser returned, as one tensor (B, C, ...).

    Samples and predictions may be lists of tensors (C, ...). The channels of a learned variance
    are dropped, as their pipelines do.
    """
    prediction = output[0]
    if isinstance(prediction, list | tuple):
        prediction = torch.stack(list(prediction))
    channels = (sample if torch.is_tensor(sample) else sample[0][None]).shape[1]
    return prediction[:, :channels] if prediction.shape[1] == 2 * channels else prediction


@dataclass(frozen=True)
class TimestepConvention:
    """Between the scheduler's time and the denoiser's."""

    name: str = "timestep"  # of the denoiser's argument
    length: int = 1000  # number of training timesteps
    is_unit: bool = False  # whether the denoiser is given a share of the length
    is_reversed: bool = False  # whether it is given 0 for noise

    def to_scheduler(self, denoiser_time: Tensor) -> Tensor:
        """The scheduler's time, (), float64, from what the denoiser is given of one row."""
        time = denoiser_time.double().reshape(-1).amax()
        time = time * self.length if self.is_unit else time
        return self.length - time if self.is_reversed else time


def find_timestep_convention(
    name: str, length: int, runs: Sequence[tuple[Tensor, Tensor]]
) -> TimestepConvention:
    """The convention of a denoiser, by the first and the last time of one row in each run."""
    ends = [(a.double().amax().item(), b.double().amax().item()) for a, b in runs]
    is_unit = all(time <= 1 for run in ends for time in run)
    return TimestepConvention(name, length, is_unit, sum(last - first for first, last in ends) > 0)
