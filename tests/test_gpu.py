"""The main job on a CUDA device; skipped without one."""

from __future__ import annotations

import gc

import pytest
import torch
from families import FAMILIES

from diffusers_fdu import (
    EvaluationCallback,
    EvaluationConfig,
    FDUnlearner,
    NegativeGuidance,
    evaluate,
)
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import STYLES
from diffusers_fdu.evaluation.attacks.run import ATTACKS
from diffusers_fdu.evaluation.emoji import judge_cells
from diffusers_fdu.training.memory import WORKSPACE
from diffusers_fdu.training.memory_trace import weight_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("error:.*loss kernel cannot run:RuntimeWarning"),
    pytest.mark.filterwarnings("error:the denoiser cannot be compiled:RuntimeWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("dtype", "mixed_precision"),
    [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
)
def test_unlearns_on_cuda(dtype, mixed_precision) -> None:
    pipe = load_emoji_pipeline(torch_dtype=dtype).to("cuda")
    worker = FDUnlearner(
        pipe, {"guidance_scale": 4.0}, progress=False, mixed_precision=mixed_precision
    )
    before = torch.cuda.get_rng_state()
    worker.unlearn("dog", "cat", f="kl")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert pipe.unet.dtype == dtype and pipe.device.type == "cuda"
    dogs = [("dog", style) for style in STYLES]
    verdicts = judge_cells(pipe, load_emoji_judge(), dogs, range(5))
    assert sum(v.seen[0] == "dog" for v in verdicts) <= 1


def test_idle_parts_wait_on_the_cpu_and_come_back() -> None:
    pipe = load_emoji_pipeline().to("cuda")
    places: set[tuple[str, str]] = set()

    def look(record) -> None:
        places.add((pipe.text_encoder.device.type, pipe.vae.device.type))

    FDUnlearner(
        pipe, {"guidance_scale": 4.0}, False, steps=3, trajectories=4, early_stop=0.0, offload=True
    ).unlearn("dog", "cat", callback=look)
    assert places == {("cpu", "cpu")}
    assert pipe.text_encoder.device.type == pipe.vae.device.type == "cuda"


@pytest.mark.parametrize(
    "options", [{"compile": True}, {"gradient_checkpointing": True}, {"optimizer": "adamw_8bit"}]
)
def test_every_option_trains_the_same(options) -> None:
    if options.get("optimizer"):
        pytest.importorskip("bitsandbytes")
    distances = []
    for extra in ({}, options):
        worker = FDUnlearner(
            load_emoji_pipeline().to("cuda"),
            {"guidance_scale": 4.0},
            progress=False,
            steps=30,
            trajectories=8,
            early_stop=0.0,
            init="lora",
            **extra,
        )
        worker.unlearn("dog", "cat", f="kl")
        distances.append(sum(r.distance for r in worker.history[-5:]) / 5)
    assert distances[1] == pytest.approx(distances[0], rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [{"surgery": True, "micro_batch_size": 8}, {"estimator": "variational"}, {}],
    ids=str,
)
def test_the_whole_framework_on_cuda(dtype, options) -> None:
    """Two concepts, one of them without an anchor's words, in every precision."""
    pipe = load_emoji_pipeline(torch_dtype=dtype).to("cuda")
    worker = FDUnlearner(
        pipe, {"guidance_scale": 4.0}, False, steps=25, trajectories=8, early_stop=0.0, **options
    )
    worker.unlearn(["dog", "banana"], ["cat", NegativeGuidance(0.5)])
    assert len(worker.history) == 25
    assert all(p.device.type == "cuda" for p in pipe.unet.parameters())
    first, last = worker.history[0].distance, worker.history[-1].distance
    assert last < 1.5 * first  # it does not run away


# Those whose text encoders are no stand-ins on the CPU; some give the denoiser constants.
ON_DEVICE = ("sdxl", "flux", "chroma", "pixart_sigma", "hunyuan_dit", "z_image", "wan")


@pytest.mark.parametrize("key", ON_DEVICE)
@pytest.mark.parametrize("hooks", [None, "model", "sequential"])
def test_families_train_on_cuda(key, hooks) -> None:
    family = FAMILIES[key]
    pipe = family.build()
    if hooks is None:
        pipe.to("cuda")
    elif hooks == "model":
        pipe.enable_model_cpu_offload()
    elif family.streams:
        pipe.enable_sequential_cpu_offload()
    else:
        pytest.skip("diffusers does not run it so")
    kwargs = {**family.run, "num_inference_steps": 2, family.guided: 4.0}
    options = {"trajectories": 2, "steps": 3, "batch_size": 2, "retain": ["a tree"]}
    worker = FDUnlearner(pipe, kwargs, False, **options)
    worker.unlearn("a snoopy", "a dog in a red house")
    assert len(worker.history) == 3


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=str)
def test_the_estimate_is_near_what_is_allocated(options) -> None:
    """Beside what cuBLAS keeps for itself, which is more than this small model takes."""
    pipe = load_emoji_pipeline().to("cuda")
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, False, trajectories=8, steps=3, **options)
    expected = worker.estimate().training - WORKSPACE
    buffer = worker.record("dog", "cat")
    worker.unlearn("dog", "cat", buffer=buffer)  # makes the workspaces of both directions
    pipe.unload_lora_weights()
    gc.collect()
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    own = torch.cuda.memory_allocated() - sum(weight_bytes(module) for module in modules)
    torch.cuda.reset_peak_memory_stats()
    worker.unlearn("dog", "cat", buffer=buffer)
    assert 0.7 < expected / (torch.cuda.max_memory_allocated() - own) < 1.3


def test_evaluates_and_attacks_on_cuda() -> None:
    pipe = load_emoji_pipeline().to("cuda")
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False)
    worker.unlearn("dog", "cat")
    config = EvaluationConfig(attack_seeds=(0,), progress=False)
    found = evaluate(pipe, worker, attacks=tuple(ATTACKS), config=config)
    assert found.metrics["ua"].value > 0.9 and found.metrics["ira"].value > 0.9
    success = {result.name: result.success.value for result in found.attacks}
    assert len(success) == len(ATTACKS) and success["adapter removal"] > 0.8


def test_a_robust_training_on_cuda() -> None:
    pipe = load_emoji_pipeline().to("cuda")
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, robust=True, offload=False)
    watch = EvaluationCallback(pipe, "dog", every=50)
    worker.unlearn("dog", "cat", callback=watch)
    assert watch.history[-1].metrics["ua"].value > 0.8
