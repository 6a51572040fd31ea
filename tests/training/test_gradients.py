"""Frozen layers that compute without gradients, as kernels for inference do, and surgery."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny import state, unlearner

from diffusers_fdu.training.optim import project


def without_gradients(layer) -> None:
    """Its kernel knows no autograd."""
    plain = layer.forward

    @torch.no_grad()
    def forward(*args, **kwargs):
        return plain(*args, **kwargs)

    layer.forward = forward


def test_no_gradient_at_all_is_refused(pipe) -> None:
    without_gradients(pipe.unet.conv_out)
    before = state(pipe)
    with pytest.raises(RuntimeError, match="no gradient reaches the adapter"):
        unlearner(pipe).unlearn("dog", "cat")
    assert state(pipe) == before


def test_weights_without_a_gradient_are_counted(pipe) -> None:
    attention = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2"))
    without_gradients(attention.to_out[0])
    with pytest.warns(RuntimeWarning, match="reaches 4 of the adapter's 16 weights"):
        unlearner(pipe, steps=2).unlearn("dog", "cat")


@pytest.mark.parametrize("options", [{}, {"surgery": True}], ids=str)
def test_nothing_is_said_otherwise(pipe, options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        unlearner(pipe, steps=2, **options).unlearn("dog", "cat")


def cudnn_in_training(pipe, monkeypatch, **options) -> set[bool]:
    """Whether PyTorch may choose cuDNN's attention, at every gradient of an unlearning."""
    seen = set()
    for owner, name in ((torch.autograd, "grad"), (torch.Tensor, "backward")):
        plain = getattr(owner, name)

        def watched(*args, plain=plain, **kwargs):
            seen.add(torch.backends.cuda.cudnn_sdp_enabled())
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)
    unlearner(pipe, steps=2, **options).unlearn("dog", "cat")
    return seen


@pytest.mark.parametrize("options", [{}, {"trajectories": "auto"}, {"robust": True}], ids=str)
def test_gradients_go_through_no_cudnn_attention(pipe, monkeypatch, options) -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert cudnn_in_training(pipe, monkeypatch, **options) == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_it_is_allowed_again_after_an_error(pipe) -> None:
    def callback(record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearner(pipe).unlearn("dog", "cat", callback=callback)
    assert torch.backends.cuda.cudnn_sdp_enabled()


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
