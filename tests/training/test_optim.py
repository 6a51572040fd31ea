from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_fdu.training.optim import clip_gradients, learning_rate_factor, project


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


def pair(angle: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors in 7 dimensions at an angle, of lengths 2 and 3."""
    rng = np.random.default_rng(seed)
    a, b = np.linalg.qr(rng.normal(size=(7, 2)))[0].T
    return 2 * (np.cos(angle) * a + np.sin(angle) * b), 3 * a


def split(vector: np.ndarray) -> list[torch.Tensor]:
    values = torch.tensor(vector, dtype=torch.float32)
    return [values[:4].reshape(2, 2).clone(), values[4:].clone()]


def joined(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([part.flatten() for part in parts]).numpy()


@pytest.mark.parametrize("angle", [2.0, 2.7, 3.1])
def test_what_conflicts_is_projected_away(angle) -> None:
    g, h = pair(angle)
    parts, others = split(g), split(h)
    project(parts, others)
    expected = g - g @ h / (h @ h) * h
    np.testing.assert_allclose(joined(parts), expected, atol=1e-5)
    assert abs(joined(parts) @ h) < 1e-5
    np.testing.assert_allclose(joined(others), h, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.7, 1.5])
def test_what_agrees_stays(angle) -> None:
    g, h = pair(angle)
    parts = split(g)
    project(parts, split(h))
    np.testing.assert_allclose(joined(parts), g, atol=1e-6)


def test_the_tensors_are_one_vector() -> None:
    """A conflict in one tensor that the other makes good is none."""
    g = [torch.tensor([-1.0]), torch.tensor([2.0])]
    project(g, [torch.tensor([1.0]), torch.tensor([1.0])])
    assert torch.equal(torch.cat(g), torch.tensor([-1.0, 2.0]))


def test_nothing_to_retain_changes_nothing() -> None:
    g = split(pair(2.0)[0])
    before = joined(g).copy()
    project(g, [torch.zeros(2, 2), torch.zeros(3)])
    np.testing.assert_array_equal(joined(g), before)
