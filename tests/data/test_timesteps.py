from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffusers_fdu.data.timesteps import GAMMA, noise_levels, timestep_weights

T = torch.tensor([1.0, 10.0, 250.0, 500.0, 980.0])


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_levels_are_those_the_scheduler_noises_with(kind) -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    x, eps = torch.randn(2, 5, 3, 4, 4)
    expected = scheduler.add_noise(x, eps, T.long())
    signal, noise = noise_levels(kind(beta_schedule="scaled_linear"), T)
    found = signal.float()[:, None, None, None] * x + noise.float()[:, None, None, None] * eps
    torch.testing.assert_close(found, expected)


def test_levels_of_flow_matching() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    x, eps = torch.randn(2, 3, 3, 4, 4)
    at = scheduler.timesteps[[3, 400, 900]]
    expected = torch.cat(
        [scheduler.scale_noise(x[i : i + 1], at[i : i + 1], eps[i : i + 1]) for i in range(3)]
    )
    signal, noise = noise_levels(scheduler, at)
    found = signal.float()[:, None, None, None] * x + noise.float()[:, None, None, None] * eps
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_flow_sigmas_of_other_solvers() -> None:
    """They have alphas_cumprod too, and do not use them."""
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0
    )
    scheduler.set_timesteps(8)
    _, noise = noise_levels(scheduler, scheduler.timesteps)
    expected = scheduler.sigmas[:-1].double()
    torch.testing.assert_close(noise, expected, rtol=0, atol=2e-3)


def test_fractional_timesteps_lie_between() -> None:
    signal, _ = noise_levels(DDIMScheduler(), torch.tensor([10.0, 10.5, 11.0]))
    assert signal[0] > signal[1] > signal[2]


def test_a_scheduler_without_levels() -> None:
    with pytest.raises(ValueError, match="cannot tell the noise level of object"):
        noise_levels(object(), T)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_every_prediction_alike(kind) -> None:
    """min(SNR, gamma) |x0 error|^2, the error made by an error of the prediction, numerically."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    alphas = scheduler.alphas_cumprod[T.long()].double()
    snr = alphas / (1 - alphas)
    x = torch.zeros(1, dtype=torch.float64)

    def x0(prediction, a):
        if kind == "epsilon":
            return (x - (1 - a).sqrt() * prediction) / a.sqrt()
        return a.sqrt() * x - (1 - a).sqrt() * prediction if kind == "v_prediction" else prediction

    error = torch.stack([(x0(x + 1, a) - x0(x, a)).square().squeeze() for a in alphas])
    expected = snr.clamp(max=GAMMA) * error
    found = timestep_weights("min_snr", scheduler, T)
    torch.testing.assert_close(found, (expected / expected.mean()).float(), rtol=1e-4, atol=0)


def test_min_snr_of_flow_matching() -> None:
    """x_0 = x_t - sigma v."""
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = ((1 - sigma) / sigma).square().clamp(max=GAMMA) * sigma.square()
    found = timestep_weights("min_snr", FlowMatchEulerDiscreteScheduler(), 1000 * sigma)
    torch.testing.assert_close(found, (expected / expected.mean()).float())


def test_uniform_and_callables() -> None:
    assert torch.equal(timestep_weights("uniform", None, T), torch.ones(5))
    found = timestep_weights(lambda t: t > 200, None, T)
    torch.testing.assert_close(found, torch.tensor([0, 0, 5 / 3, 5 / 3, 5 / 3]))


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        ("snr", "unknown weighting 'snr': choose uniform, min_snr or a callable"),
        (lambda t: t[:2], r"weights of \(5,\) timesteps have shape \(2,\)"),
        (lambda t: -t, "must be finite, not negative and not all zero"),
        (lambda t: t * float("nan"), "must be finite"),
        (lambda t: t * 0, "not all zero"),
    ],
)
def test_bad_weightings(weighting, message) -> None:
    with pytest.raises(ValueError, match=message):
        timestep_weights(weighting, DDIMScheduler(), T)
