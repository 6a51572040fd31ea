"""Whatever is refused or fails, the pipe is left as it was."""

from __future__ import annotations

import pytest
import torch
from conftest import latents
from peft.tuners.lora import Linear
from tiny import add_other_adapter, state, unlearner

from diffusers_fdu import Concept, FDUnlearner


def test_a_sigma_without_slope_is_named(pipe) -> None:
    before = state(pipe)
    with pytest.raises(ValueError, match="hellinger has slope 0.0 at sigma=1e-06"):
        unlearner(pipe, sigma=1e-6).unlearn("dog", "cat", f="hellinger")
    assert state(pipe) == before


@pytest.mark.parametrize("with_other", [False, True])
def test_failure_while_the_adapter_is_attached(pipe, monkeypatch, with_other) -> None:
    if with_other:
        add_other_adapter(pipe)
    drawn, before = latents(pipe), state(pipe)
    original, calls = Linear.update_layer, []

    def update_layer(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Linear, "update_layer", update_layer)
    with pytest.raises(RuntimeError, match="out of memory"):
        unlearner(pipe).unlearn("dog", "cat")
    monkeypatch.undo()
    assert state(pipe) == before
    assert torch.equal(latents(pipe), drawn)
    unlearner(pipe).unlearn("dog", "cat")


def test_adapters_that_are_off_or_fused_are_refused(pipe) -> None:
    add_other_adapter(pipe)
    pipe.disable_lora()
    with pytest.raises(ValueError, match="enable_lora"):
        unlearner(pipe).unlearn("dog", "cat")
    pipe.enable_lora()
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unfuse_lora"):
        unlearner(pipe).unlearn("dog", "cat")


def test_a_compiled_denoiser_is_refused(pipe) -> None:
    pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(ValueError, match="unlearn first"):
        unlearner(pipe).unlearn("dog", "cat")


@pytest.mark.parametrize("name", ["prompt", "generator", "num_images_per_prompt"])
def test_arguments_that_recording_sets_are_refused(pipe, name) -> None:
    with pytest.raises(ValueError, match=f"may not hold '{name}'"):
        FDUnlearner(pipe, {name: 2}, progress=False).unlearn("dog", "cat")


@pytest.mark.parametrize("kind", ["of the batch", "of the step"])
def test_residuals_of_another_model_are_refused(pipe, monkeypatch, kind) -> None:
    """As ControlNet and IP-Adapter pass them: lists of tensors that are no text."""
    original, before = pipe.unet.forward, state(pipe)
    steps = iter(range(1000))

    def with_residuals(sample, timestep, encoder_hidden_states, residuals=(), **kwargs):
        return original(sample, timestep, encoder_hidden_states, **kwargs)

    def call(self, *args, **kwargs):
        value = torch.zeros_like(args[0])
        kwargs["residuals"] = (value if kind == "of the batch" else torch.ones(1) * next(steps),)
        return torch.nn.Module.__call__(self, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", with_residuals)
    monkeypatch.setattr(type(pipe.unet), "__call__", call)
    with pytest.raises(ValueError, match="cannot record this pipeline: .*residuals"):
        unlearner(pipe).unlearn("dog", "cat")
    monkeypatch.undo()
    assert state(pipe) == before


@pytest.mark.parametrize("with_other", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_failure_leaves_no_trace(pipe, with_other, error) -> None:
    if with_other:
        add_other_adapter(pipe)
    pipe.unet.requires_grad_(True).train()
    drawn, before = latents(pipe), state(pipe)

    def stop(record) -> None:
        if record.step == 3:
            raise error("stop")

    worker = unlearner(pipe)
    with pytest.raises(error):
        worker.unlearn("dog", "cat", callback=stop)
    assert state(pipe) == before
    assert torch.equal(latents(pipe), drawn)
    assert worker.adapter_name is None and worker.history == []
    worker.unlearn("dog", "cat")
    assert worker.adapter_name == "forget-dog"


def test_nan_is_an_error_and_leaves_no_trace(pipe) -> None:
    before = state(pipe)

    def poison(record) -> None:
        for name, parameter in pipe.unet.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        unlearner(pipe).unlearn("dog", "cat", callback=poison)
    assert state(pipe) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"target": "dog", "anchor": "cat", "f": "helinger"}, "unknown divergence"),
        ({"target": "", "anchor": "cat"}, "target must name"),
        ({"target": "dog", "anchor": "dog"}, "target and anchor are both"),
        ({"target": "dog " * 60, "anchor": "cat"}, "the tokenizer takes 48"),
        ({"target": "dog", "anchor": "cat", "adapter_name": "a.b"}, "adapter_name 'a.b'"),
        ({"target": Concept("dog"), "anchor": "cat"}, "its own anchor"),
    ],
)
def test_bad_calls_leave_no_trace(pipe, call, message) -> None:
    before = state(pipe)
    with pytest.raises(ValueError, match=message):
        unlearner(pipe).unlearn(**call)
    assert state(pipe) == before


def test_bad_set_up(pipe, tmp_path) -> None:
    with pytest.raises(ValueError, match="no denoiser"):
        FDUnlearner(object())
    with pytest.raises(TypeError, match="unknown option"):
        FDUnlearner(pipe, lr=1.0)
    with pytest.raises(ValueError, match="'attn9.to_k'"):
        unlearner(pipe, target_modules=["attn9.to_k"]).unlearn("dog", "cat")
    with pytest.raises(RuntimeError, match="call unlearn first"):
        unlearner(pipe).save(tmp_path)


def test_saving_an_adapter_that_is_gone(pipe, tmp_path) -> None:
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat")
    pipe.unload_lora_weights()
    with pytest.raises(RuntimeError, match="no longer on the pipe"):
        worker.save(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_file_in_the_folders_place(pipe, tmp_path) -> None:
    (tmp_path / "taken").write_text("mine")
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat")
    with pytest.raises(ValueError, match="cannot write"):
        worker.save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_training_that_goes_astray_says_so(pipe) -> None:
    with pytest.warns(RuntimeWarning, match="farther from its anchor .* lower learning_rate"):
        unlearner(pipe, init="lora", learning_rate=30.0).unlearn("dog", "cat", f="kl")
