"""How much signal is left at a timestep, and weights of timesteps made from it.

Diffusion models noise x_0 as x_t = signal x_0 + noise eps. Where the scheduler has
`alphas_cumprod`, signal^2 = alphas_cumprod[t] and noise^2 = 1 - signal^2; flow matching has
signal = 1 - noise and noise = t / T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import Weighting

GAMMA = 5.0
"""Where min-SNR weights level off (Hang et al., arXiv 2303.09556)."""


def is_flow(scheduler: Any) -> bool:
    """Whether x_t = (1 - sigma) x_0 + sigma eps."""
    config: Any = getattr(scheduler, "config", {})
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def noise_levels(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of x_t.

    Args:
        scheduler: of diffusers, with `alphas_cumprod`, or of flow matching.
        timesteps: as the scheduler has them, (B,), also fractional.

    Returns:
        Two tensors (B,), float64.

    Raises:
        ValueError: if the scheduler is of neither kind.
    """
    t = timesteps.detach().cpu().double()
    if is_flow(scheduler):
        noise = t / scheduler.config.num_train_timesteps
        return 1 - noise, noise
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not torch.is_tensor(alphas):
        raise ValueError(
            f"cannot tell the noise level of {type(scheduler).__name__}: it has no alphas_cumprod "
            "and is no flow-matching scheduler"
        )
    alphas = alphas.cpu().double()
    low = t.floor().long().clamp(0, len(alphas) - 1)
    high = (low + 1).clamp(max=len(alphas) - 1)
    square = torch.lerp(alphas[low], alphas[high], t - low)
    return square.sqrt(), (1 - square).clamp(min=0).sqrt()


def timestep_weights(weighting: Weighting, scheduler: Any, timesteps: Tensor) -> Tensor:
    """A weight for each timestep, of mean 1.

    Args:
        weighting: "uniform": all the same. "min_snr": min(SNR, gamma) / SNR for models that
            predict the noise, / (SNR + 1) for v, and min(SNR, gamma) / (sqrt(SNR) + 1)^2 for
            flow matching: the loss of min-SNR on x_0 written for each prediction. A callable
            gets the timesteps, (B,), as the scheduler has them, and returns weights, (B,).
        scheduler: see `noise_levels`; not needed for "uniform".
        timesteps: (B,).

    Returns:
        (B,) float32.

    Raises:
        ValueError: for an unknown name, or weights that are negative, not finite, all zero or
            of another shape.
    """
    if weighting == "uniform":
        return torch.ones(len(timesteps))
    if weighting == "min_snr":
        weights = _min_snr(scheduler, timesteps)
    elif callable(weighting):
        weights = torch.as_tensor(weighting(timesteps.detach().cpu()))
    else:
        raise ValueError(f"unknown weighting {weighting!r}: choose uniform, min_snr or a callable")
    if weights.shape != timesteps.shape:
        raise ValueError(
            f"weights of {tuple(timesteps.shape)} timesteps have shape {tuple(weights.shape)}"
        )
    weights = weights.detach().cpu().double()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not weights.any():
        raise ValueError("weights of timesteps must be finite, not negative and not all zero")
    return (weights / weights.mean()).float()


def _min_snr(scheduler: Any, timesteps: Tensor) -> Tensor:
    signal, noise = noise_levels(scheduler, timesteps)
    tiny = torch.finfo(signal.dtype).tiny
    snr = (signal / noise.clamp(min=tiny)).square().clamp(1e-8, 1e8)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if is_flow(scheduler):
        scale = (snr.sqrt() + 1).square()
    else:
        scale = {"v_prediction": snr + 1, "sample": torch.ones_like(snr)}.get(kind, snr)
    return snr.clamp(max=GAMMA) / scale
