"""Frozen layers that compute without gradients, as kernels for inference do."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import state, unlearner


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
