"""Other states than those of the runs: recorded pictures, noised anew.

    x_t = signal(t) x_0 + noise(t) eps,   t uniform, eps ~ N(0, 1)

The states that training loops usually have, with the frozen model asked at each. Trajectories
visit what the model meets when it draws; these visit what it was trained on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..pipelines.timestep_convention import Clock
from ..utils.nested import Leaves
from .timesteps import is_flow, noise_levels

COPIES = 6
"""Noised states of one picture, as many as a recorded run has steps on average."""


class Clean(NamedTuple):
    """A picture that was drawn, and whose row it is.

    Args:
        state: what the denoiser was given, without batch dimension, x_t replaced by x_0.
        own: index of the text it was drawn from.
        target: index of the target's text; None for a prompt to retain.
        concept: index of the concept.
        guidance: see `Pair`.
    """

    state: Leaves
    own: int
    target: int | None
    concept: int
    guidance: float | None


def noised(
    state: Leaves,
    name: str,
    scheduler: Any,
    generator: torch.Generator,
    clock: Clock,
    span: tuple[float, float] | None = None,
) -> Leaves:
    """One picture at a random timestep.

    Args:
        state: with x_0 under `name` and any timestep.
        name: see `sample_name`.
        scheduler: says how much noise there is at a timestep.
        generator: of timestep and noise, on the CPU.
        clock: how the denoiser is told the time.
        span: of the scheduler's times; None: all.

    Raises:
        ValueError: see `noise_levels`.
    """
    low, high = span or (0.0, float(scheduler.config.num_train_timesteps))
    if is_flow(scheduler):
        t = low + torch.rand(1, generator=generator, dtype=torch.float64) * (high - low)
    else:
        ends = int(low), max(int(high), int(low) + 1)
        t = torch.randint(*ends, (1,), generator=generator).double()
    signal, noise = (level.item() for level in noise_levels(scheduler, t))
    x = state[name].detach().cpu().float()
    eps = torch.randn(x.shape, generator=generator)
    return {
        **state,
        name: signal * x + noise * eps,
        clock.name: clock.write(t, state[clock.name]),
    }


def latents_like(latents: Any, state: Tensor) -> Tensor:
    """The pipe's latents if they have the shape of what its denoiser is given.

    Raises:
        ValueError: if they do not.
    """
    if torch.is_tensor(latents) and latents.shape == state.shape:
        return latents
    shape = tuple(latents.shape) if torch.is_tensor(latents) else type(latents).__name__
    raise ValueError(
        f"states='renoise' needs latents of the denoiser's shape {tuple(state.shape)}, the "
        f"pipeline gives {shape}: use states='trajectory'"
    )
