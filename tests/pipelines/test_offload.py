"""Denoisers that hooks move; which device they are moved to makes no difference here."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from families import FAMILIES
from tiny import add_other_adapter, unlearner

from diffusers_fdu import FDUnlearner
from diffusers_fdu.pipelines.offload import is_streamed, onloaded, placement, streamed

CPU = torch.device("cpu")


def offloaded(pipe, kind):
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        cpu_offload(pipe.unet, CPU)
    return pipe


def latents(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("a dog", num_inference_steps=2, output_type="latent", generator=generator)[0]


def weights(pipe):
    with onloaded(pipe.unet):
        return {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_the_hooks_are_as_before(pipe, kind) -> None:
    before, drawn = weights(pipe), latents(pipe)
    offloaded(pipe, kind)
    hooked = [n for n, m in pipe.unet.named_modules() if hasattr(m, "_hf_hook")]
    with onloaded(pipe.unet):
        assert not is_streamed(pipe.unet)
    assert is_streamed(pipe.unet) == (kind == "sequential")
    assert [n for n, m in pipe.unet.named_modules() if hasattr(m, "_hf_hook")] == hooked
    assert placement(pipe.unet).device.type == "cpu"
    found = weights(pipe)
    assert all(torch.equal(found[name], value) for name, value in before.items())
    assert torch.equal(latents(pipe), drawn)


def test_weights_kept_in_float32_do_not_say_the_dtype(tmp_path) -> None:
    """Those of Wan come first, and its other layers refuse float32."""
    family = FAMILIES["wan"]
    made = family.build()
    made.transformer.save_pretrained(tmp_path)
    model = type(made.transformer).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    made.transformer = model
    made.text_encoder.to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.float32
    assert placement(model).dtype == torch.bfloat16
    kwargs = {**family.run, "num_inference_steps": 2}
    FDUnlearner(made, kwargs, False, steps=1, trajectories=1, batch_size=1).unlearn("dog", "cat")


def test_only_frozen_layers_are_streamed(pipe) -> None:
    """A trained layer keeps its weights, a frozen one has them for its own call alone."""
    model = pipe.unet.requires_grad_(False)
    model.conv_out.requires_grad_(True)
    parts = [torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 16)]
    expected = model(*parts)[0]
    expected.sum().backward()
    gradient, model.conv_out.weight.grad = model.conv_out.weight.grad, None
    seen = []
    model.conv_in.register_forward_hook(lambda *_: seen.append(model.conv_out.weight.is_meta))
    with streamed(model, CPU, True):
        assert model.conv_in.weight.is_meta and not model.conv_out.weight.is_meta
        found = model(*parts)[0]
        assert model.conv_in.weight.is_meta
        found.sum().backward()
        torch.testing.assert_close(model.conv_out.weight.grad, gradient)
    assert seen == [False]
    assert torch.equal(found, expected)
    assert not is_streamed(model)


LEAST = {"micro_batch_size": 1, "gradient_checkpointing": True, "record_batch": 1}


@pytest.mark.parametrize("kind", ["model", "sequential"])
@pytest.mark.parametrize("options", [{}, {"surgery": True}, {**LEAST, "steps": 3}], ids=str)
def test_training_is_the_same(pipe, kind, options, tmp_path) -> None:
    from conftest import build_tiny_pipe

    files = []
    for i, made in enumerate([build_tiny_pipe(), offloaded(pipe, kind)]):
        worker = unlearner(made, **options)
        worker.unlearn("dog", "cat")
        path = worker.save(tmp_path / str(i)) / "pytorch_lora_weights.safetensors"
        files.append(path.read_bytes())
        assert torch.isfinite(latents(made)).all()
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_a_failure_takes_the_adapter_away_and_leaves_the_hooks(pipe, kind) -> None:
    add_other_adapter(pipe)
    drawn = latents(pipe)
    offloaded(pipe, kind)
    before = sorted(n for n, _ in pipe.unet.named_parameters())

    def fail(record):
        if record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearner(pipe).unlearn("dog", "cat", callback=fail)
    assert sorted(n for n, _ in pipe.unet.named_parameters()) == before
    assert is_streamed(pipe.unet) == (kind == "sequential")
    assert torch.equal(latents(pipe), drawn)


@pytest.mark.parametrize("format", ["diffusers", "peft"])
@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_an_adapter_loads_under_offload(pipe, kind, format, tmp_path) -> None:
    from conftest import build_tiny_pipe

    from diffusers_fdu import load_unlearned

    worker = unlearner(build_tiny_pipe())
    worker.unlearn("dog", "cat")
    worker.save(tmp_path, format)
    expected = latents(worker.pipe)
    assert not torch.equal(expected, latents(build_tiny_pipe()))
    load_unlearned(offloaded(pipe, kind), tmp_path)
    assert is_streamed(pipe.unet) == (kind == "sequential")
    assert torch.equal(latents(pipe), expected)
