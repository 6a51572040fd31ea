"""How a denoiser is told the time.

Schedulers count from the number of training timesteps, pure noise, down to 0. Denoisers are given
that, or its share of the whole, or what is left of the whole; one number for each row, or one for
each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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
