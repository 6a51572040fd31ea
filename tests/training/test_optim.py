from __future__ import annotations

import pytest
import torch

from diffusers_fdu.training.optim import clip_gradients, learning_rate_factor


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(i, 100) for i in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in zip(factors[4:], factors[5:], strict=False))
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(0, 1) == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_clipping_agrees_with_float64_at_any_scale(scale) -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
    for p in parameters:
        p.grad = torch.randn_like(p) * scale
    exact = [p.grad.double() for p in parameters]
    norm = torch.stack([g.square().sum() for g in exact]).sum().sqrt().item()
    clip_gradients(parameters, 0.5)
    for p, g in zip(parameters, exact, strict=True):
        expected = (g * min(1.0, 0.5 / norm)).float()
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=0)


def test_clipping_leaves_zero_gradients_zero() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.zeros(3)
    clip_gradients([parameter], 1.0)
    assert torch.equal(parameter.grad, torch.zeros(3))
