from __future__ import annotations

import math

import pytest
import torch

from diffusers_fdu.train import clip_gradients, learning_rate_factor, settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"steps": 1.5}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate must be positive, got 'fast'"),
        ({"max_grad_norm": "auto"}, "max_grad_norm"),
        ({"alpha": 0}, "alpha must be positive, got 0"),
        ({"alpha": "x"}, "alpha must be positive, got 'x'"),
        ({"retain_weight": "x"}, "retain_weight"),
        ({"retain_weight": -1.0}, "retain_weight"),
        ({"early_stop": 1.0}, "early_stop"),
        ({"mixed_precision": "int8"}, "mixed_precision 'int8'"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"compile": 1}, "compile must be True or False, got 1"),
    ],
)
def test_bad_values_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(options)


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown option 'learning_rat'.*learning_rate.*compile"):
        settings({"learning_rat": 1.0})


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
