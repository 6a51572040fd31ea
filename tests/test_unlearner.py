"""What an unlearning leaves on the pipe and in files, through the front door."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipe, latents
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny import FAST, RUNS, add_other_adapter, state, unlearner

from diffusers_fdu import FDUnlearner

NAME = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("f", ["kl", "hellinger", "chi2", "js", "tv", "alpha=0.3"])
def test_the_divergence_falls_for_every_f(pipe, f) -> None:
    worker = unlearner(pipe, steps=40)
    assert worker.unlearn("dog", "cat", f=f) is pipe
    first = sum(r.divergence for r in worker.history[:4])
    last = sum(r.divergence for r in worker.history[-4:])
    assert len(worker.history) == 40 and last < 0.7 * first


def test_only_the_adapter_is_trained_and_it_is_active(pipe) -> None:
    before = {n: p.clone() for n, p in pipe.unet.named_parameters()}
    drawn = latents(pipe)
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat", f="kl")
    assert pipe.get_active_adapters() == ["forget-dog"] == [worker.adapter_name]
    assert (latents(pipe) - drawn).abs().max() > 1e-3
    for name, parameter in pipe.unet.named_parameters():
        assert not (parameter.requires_grad and "lora" in name)
        if "lora" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    layers = [n for n, m in pipe.unet.named_modules() if isinstance(m, BaseTunerLayer)]
    assert layers and all(n.endswith(("attn2.to_k", "attn2.to_v")) for n in layers)


def test_unloading_restores_the_pipe(pipe) -> None:
    drawn, before = latents(pipe), state(pipe)
    unlearner(pipe).unlearn("dog", "cat")
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), drawn)
    after = state(pipe)
    assert after["names"] == before["names"] and after["training"] == before["training"]
    assert after["grad"] == before["grad"]


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    files = []
    for i in range(2):
        torch.manual_seed(i)  # the caller's RNG must not matter
        worker = unlearner(build_tiny_pipe(), seed=3)
        worker.unlearn("dog", "cat")
        folder = worker.save(tmp_path / str(i))
        files.append((folder / NAME).read_bytes())
    assert files[0] == files[1]
    other = unlearner(build_tiny_pipe(), seed=4)
    other.unlearn("dog", "cat")
    assert (other.save(tmp_path / "2") / NAME).read_bytes() != files[0]


LOAD = """
import sys
sys.modules["diffusers_fdu"] = None  # any import of it fails
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)

def draw():
    generator = torch.Generator().manual_seed(0)
    return pipe("a dog", num_inference_steps=3, generator=generator, output_type="np").images

base = draw()
pipe.load_lora_weights(sys.argv[2], adapter_name="forget")
images = {"base": base, "one": draw()}
for weight in (0.0, 0.5, 1.0):
    pipe.set_adapters(["forget"], [weight])
    images[str(weight)] = draw()
pipe.unload_lora_weights()
images["unloaded"] = draw()
torch.save({k: torch.from_numpy(v) for k, v in images.items()}, sys.argv[3])
"""


def test_plain_diffusers_loads_it_in_another_process(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "pipe")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    worker = unlearner(pipe, rank=3, alpha=7.5, steps=40)
    worker.unlearn("dog", "cat", f="kl")
    worker.save(tmp_path / "lora")

    def draw():
        generator = torch.Generator().manual_seed(0)
        images = pipe("a dog", num_inference_steps=3, generator=generator, output_type="np")
        return torch.from_numpy(images.images)

    trained = draw()
    script = tmp_path / "load.py"
    script.write_text(textwrap.dedent(LOAD))
    arguments = [str(script), str(tmp_path / "pipe"), str(tmp_path / "lora")]
    command = [sys.executable, *arguments, str(tmp_path / "images.pt")]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    images = torch.load(tmp_path / "images.pt")
    assert (images["one"] - trained).abs().max() <= 1 / 255
    assert (images["1.0"] - trained).abs().max() <= 1 / 255
    assert torch.equal(images["0.0"], images["base"])
    assert torch.equal(images["unloaded"], images["base"])
    changed = (images["one"] - images["base"]).abs().mean()
    halfway = (images["0.5"] - images["base"]).abs().mean()
    assert 1e-4 < halfway < changed
    assert (images["0.5"] - images["one"]).abs().mean() < changed


def test_rank_and_alpha_survive(pipe, tmp_path) -> None:
    worker = unlearner(pipe, rank=3, alpha=7.5)
    worker.unlearn("dog", "cat")
    worker.save(tmp_path)
    fresh = build_tiny_pipe()
    fresh.load_lora_weights(tmp_path, adapter_name="again")
    config = fresh.unet.peft_config["again"]
    assert (config.r, config.lora_alpha) == (3, 7.5)
    torch.testing.assert_close(latents(fresh), latents(pipe), rtol=0, atol=1e-6)
    keys = load_file(tmp_path / NAME)
    assert keys and all(k.startswith("unet.") and "attn2.to_" in k for k in keys)


@pytest.mark.parametrize("f", ["kl", "chi2", "tv"])
def test_early_stop_is_on_one_scale_for_every_f(f) -> None:
    worker = unlearner(build_tiny_pipe(), steps=100, early_stop=0.5)
    worker.unlearn("dog", "cat", f=f)
    s = [record.distance for record in worker.history]
    assert 5 < len(s) < 100
    smooth = s[0]
    for value in s:
        smooth = 0.8 * smooth + 0.2 * value
    assert 0.3 * s[0] < smooth < 0.7 * s[0]


def test_the_distance_is_that_of_kl(pipe) -> None:
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat", f="kl")
    for record in worker.history:
        assert record.distance == pytest.approx(2 * record.divergence, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "mixed_precision"),
    [
        (torch.bfloat16, "no"),
        (torch.float32, "bf16"),
        (torch.float32, "fp16"),
        (torch.float16, "no"),
    ],
)
def test_half_precision(pipe, dtype, mixed_precision) -> None:
    pipe.to(dtype)
    worker = unlearner(pipe, steps=40, mixed_precision=mixed_precision)
    worker.unlearn("dog", "cat", f="kl")
    first = sum(r.distance for r in worker.history[:4])
    assert sum(r.distance for r in worker.history[-4:]) < 0.7 * first
    assert {p.dtype for p in pipe.unet.parameters()} == {dtype}


def test_another_precision_in_the_same_process(pipe) -> None:
    for precision in ("bf16", "no", "fp16"):
        unlearner(pipe, mixed_precision=precision, steps=2).unlearn("dog", "cat")


def test_retaining_keeps_more_than_not_retaining() -> None:
    moved = []
    for weight in (0.0, 5.0):
        pipe = build_tiny_pipe()
        drawn = [latents(pipe, "a tree", seed) for seed in range(4)]
        config = {"steps": 150, "trajectories": 12, "retain": ["a tree"], "init": "lora"}
        unlearner(pipe, retain_weight=weight, **config).unlearn("dog", "cat")
        again = [latents(pipe, "a tree", seed) for seed in range(4)]
        moved.append(sum((a - b).abs().mean().item() for a, b in zip(again, drawn, strict=True)))
    assert moved[1] < 0.8 * moved[0]


def test_micro_batches_and_other_layers(pipe) -> None:
    worker = unlearner(pipe, micro_batch_size=2, target_modules=["attn2.to_q", "attn2.to_out.0"])
    worker.unlearn("dog", "cat")
    layers = [n for n, m in pipe.unet.named_modules() if isinstance(m, BaseTunerLayer)]
    assert all(n.endswith(("attn2.to_q", "attn2.to_out.0")) for n in layers)


def test_micro_batches_are_averaged() -> None:
    """With one row to unlearn and no retain loss, the split into micro-batches changes nothing."""
    losses = []
    for size in (8, 2):
        worker = FDUnlearner(
            build_tiny_pipe(),
            {"num_inference_steps": 1, "guidance_scale": 1.0},
            progress=False,
            **{**FAST, "trajectories": 1, "retain_weight": 0.0, "batch_size": 8},
            micro_batch_size=size,
        )
        worker.unlearn("dog", "cat", f="kl")
        losses.append([record.loss for record in worker.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_adapters_already_there_stay_and_count_as_the_model(pipe) -> None:
    add_other_adapter(pipe)
    with_other = latents(pipe, "a house")
    weights = {n: p.clone() for n, p in pipe.unet.named_parameters() if ".other." in n}
    worker = unlearner(pipe, init="lora", steps=1, learning_rate=1e-12)
    worker.unlearn("dog", "cat")
    assert pipe.get_active_adapters() == ["other", "forget-dog"]
    # The new adapter does nearly nothing, so the strength of the other one is still 0.7.
    torch.testing.assert_close(latents(pipe, "a house"), with_other, rtol=0, atol=1e-4)
    for name, parameter in pipe.unet.named_parameters():
        if ".other." in name:
            assert torch.equal(parameter, weights[name]) and not parameter.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(pipe, mode) -> None:
    with mode():
        worker = unlearner(pipe, steps=20)
        worker.unlearn("dog", "cat", f="kl")
    assert worker.history[-1].divergence < worker.history[0].divergence


def test_a_negative_prompt_is_recorded_with_every_batch(pipe) -> None:
    kwargs = {**RUNS, "negative_prompt": "red house"}
    worker = FDUnlearner(pipe, kwargs, progress=False, init="lora", **{**FAST, "trajectories": 9})
    worker.unlearn("dog", "cat")
    assert worker.history[0].retain < 1e-3


def test_the_recipe_names_what_a_file_cannot_hold(pipe) -> None:
    add_other_adapter(pipe)

    def kl(t):
        return (t - 1) ** 2

    worker = unlearner(pipe, steps=2)
    worker.unlearn("dog", "cat", f=kl)
    assert worker.recipe["f"] == "generator:kl"  # not the built-in kl
    assert worker.recipe["active_adapters"] == {"other": pytest.approx(0.7)}


def test_two_in_a_row(pipe) -> None:
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat")
    worker.unlearn("apple", "tree")
    worker.unlearn("dog", "tree")
    assert pipe.get_active_adapters() == ["forget-dog", "forget-apple", "forget-dog-2"]


def test_a_pipe_in_training_mode_is_still_so_after_unloading(pipe) -> None:
    pipe.unet.requires_grad_(True).train()
    before = state(pipe)
    unlearner(pipe).unlearn("dog", "cat")
    pipe.unload_lora_weights()
    after = state(pipe)
    assert after["training"] == before["training"] and after["grad"] == before["grad"]


def test_names_that_hold_one_another(pipe) -> None:
    """PEFT puts the adapter's name into parameter names, where "lora_A" is a word too."""
    first = unlearner(pipe)
    first.unlearn("dog", "cat", adapter_name="to_k")
    kept = {n: p.clone() for n, p in pipe.unet.named_parameters() if ".to_k.weight" in n}
    assert kept
    unlearner(pipe).unlearn("apple", "tree", adapter_name="lora_A")
    for name, value in kept.items():
        assert torch.equal(dict(pipe.unet.named_parameters())[name], value)


def test_the_recipe_is_json_whatever_the_arguments(pipe, tmp_path) -> None:
    kwargs = {**RUNS, "guidance_scale": np.float32(2.0), "cross_attention_kwargs": {"scale": 1.0}}
    worker = FDUnlearner(pipe, kwargs, progress=False, **FAST)
    worker.unlearn("dog", "cat", f="alpha=0.3141592653589793")
    recipe = json.loads((worker.save(tmp_path) / "recipe.json").read_text())
    assert recipe["pipeline_kwargs"]["guidance_scale"] == 2.0
    assert recipe["pipeline_kwargs"]["cross_attention_kwargs"] == {"scale": 1.0}
    assert recipe["f"] == "alpha=0.3141592653589793"
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1  # the LoRA is as readable as the recipe
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME, "recipe.json"]
