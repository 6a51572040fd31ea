"""Adapters on quantised denoisers, against trainings on the weights that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from families import FAMILIES
from quantised import BACKENDS, dequantised, is_quantised, kept, on_device, quantised
from torch import Tensor

from diffusers_fdu import FDUnlearner, load_unlearned
from diffusers_fdu.adapters.loading import has_loader
from diffusers_fdu.adapters.lora import tuner_layers
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.pipelines.offload import onloaded
from diffusers_fdu.training.memory_trace import weight_bytes

TARGET, ANCHOR = "dog", "a grey cat"
# FLUX reads the text by joint attention, Stable Diffusion by cross-attention, where the closed
# form is; PixArt is without diffusers' loaders of adapters and of single files.
CASES = [
    *(("flux", name, "lora") for name in BACKENDS),
    *(
        ("sd", name, "closed_form")
        for name in BACKENDS
        if name not in ("torchao_int4", "gguf_q4_0")
    ),
    ("pixart_alpha", "torchao_int4", "closed_form"),
]


def worker(pipe: Any, family: str, **options: Any) -> FDUnlearner:
    made = FAMILIES[family]
    kwargs = {**made.run, "num_inference_steps": 3, made.guided: 4.0}
    training = {"trajectories": 2, "steps": 20, "batch_size": 2, "learning_rate": 1e-2}
    return FDUnlearner(
        pipe, kwargs, False, retain=["a tree"], early_stop=0.0, **{**training, **options}
    )


@dataclass
class Case:
    """A quantised denoiser on which an adapter was trained."""

    family: str
    backend: str
    folder: Path
    kept: dict[str, list[Tensor]]
    types: list[tuple[str, type]]
    worker: FDUnlearner
    buffer: ReplayBuffer
    frozen: Tensor

    @property
    def model(self) -> Any:
        return self.worker.model

    def ask(self, model: Any) -> Tensor:
        return ask(model, self.buffer, self.buffer.entries("unlearn"))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory) -> Case:
    family, backend, init = request.param
    folder = tmp_path_factory.mktemp("quantised")
    pipe, model = quantised(family, backend, folder / "trained")
    before, types = kept(model), layer_types(model)
    assert any(is_quantised(layer) for layer in model.modules())
    made = worker(pipe, family, init=init)
    buffer = made.record(TARGET, ANCHOR)
    frozen = ask(model, buffer, buffer.entries("unlearn"))
    made.unlearn(TARGET, ANCHOR, buffer=buffer)
    return Case(family, backend, folder, before, types, made, buffer, frozen)


def layer_types(model: Any) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def updates(model: Any) -> Tensor:
    """What the adapter adds to the layers' weights, in one row."""
    found = []
    for layer in tuner_layers(model):
        for name in layer.lora_A:
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            found.append((layer.scaling[name] * up @ down).flatten())
    return torch.cat(found)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_same(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        for one, other in zip(found[name], values, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other), name


def test_the_base_is_untouched_and_the_distance_falls(case) -> None:
    model, entries = case.model, case.buffer.entries("unlearn")
    assert_same(kept(model), case.kept)
    adapted = tuner_layers(model)
    assert adapted and all(is_quantised(layer.get_base_layer()) for layer in adapted)
    assert {p.dtype for layer in adapted for p in layer.lora_A.parameters()} == {torch.float32}
    anchor = case.buffer.predictions(entries)
    left = (case.ask(model) - anchor).square().mean() / (case.frozen - anchor).square().mean()
    assert left < 0.6


def test_trains_as_on_the_weights_it_stands_for(case) -> None:
    made = BACKENDS[case.backend]
    pipe, plain = dequantised(case.family, case.backend, case.model)
    init = case.worker.config.init
    assert error(case.frozen, case.ask(plain)) <= made.tolerance
    worker(pipe, case.family, init=init).unlearn(TARGET, ANCHOR, buffer=case.buffer)

    assert error(updates(case.model), updates(plain)) <= made.trained_tolerance


def test_loads_on_a_fresh_quantised_pipe(case) -> None:
    pipe, model = quantised(case.family, case.backend, case.folder / "fresh")
    if has_loader(pipe):
        pipe.load_lora_weights(case.worker.save(case.folder / "saved"), adapter_name="forget")
    else:
        load_unlearned(pipe, case.worker.save(case.folder / "saved", "peft"))
    assert torch.equal(case.ask(model), case.ask(case.model))
    assert_same(kept(model), case.kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failure_leaves_the_base_as_it_was(backend, tmp_path) -> None:
    pipe, model = quantised("flux", backend, tmp_path / "a")
    before, types = kept(model), layer_types(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}

    def fail(record) -> None:
        assert tuner_layers(model)
        if record.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(pipe, "flux", trajectories=1).unlearn(TARGET, ANCHOR, callback=fail)
    assert layer_types(model) == types
    assert_same(kept(model), before)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not getattr(model, "peft_config", {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_in_float32_where_the_base_computes_in_bfloat16(backend, tmp_path) -> None:
    pipe, model = quantised("flux", backend, tmp_path / "a", torch.bfloat16)
    before, seen = kept(model), set()

    def look(record) -> None:
        seen.update(p.dtype for n, p in model.named_parameters() if ".lora_" in n)

    made = worker(pipe, "flux", steps=12, retain_weight=0.0)
    made.unlearn(TARGET, ANCHOR, callback=look)
    assert seen == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if ".lora_" in n} == {torch.bfloat16}
    assert made.history[-1].distance < 0.6 * made.history[0].distance
    assert_same(kept(model), before)


def test_streamed_weights_with_scales_beside_them_are_refused(tmp_path) -> None:
    pipe, model = quantised("flux", "bitsandbytes_8bit", tmp_path / "a")
    cpu_offload(model, torch.device("cpu"))
    run = {**FAMILIES["flux"].run, "num_inference_steps": 1, "output_type": "latent"}

    def drawn() -> Tensor:
        return pipe("a dog", generator=torch.Generator().manual_seed(0), **run)[0]

    before = drawn()
    with pytest.raises(ValueError, match="loses the scales of Int8Params: use enable_model_cpu"):
        worker(pipe, "flux").unlearn(TARGET, ANCHOR)
    assert torch.equal(drawn(), before)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_trains_the_same_when_it_is_moved_by_hooks(offload, tmp_path) -> None:
    found = []
    for name in ("plain", "hooked"):
        pipe, model = quantised("flux", "torchao_int8", tmp_path / name)
        if name == "hooked" and offload == "model":
            pipe.enable_model_cpu_offload(device="cpu")
        elif name == "hooked":
            cpu_offload(model, torch.device("cpu"))
        made = worker(pipe, "flux", steps=3)
        made.unlearn(TARGET, ANCHOR)
        with onloaded(model):
            found.append(updates(model))
    assert torch.equal(*found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_on_cuda(backend, tmp_path) -> None:
    """As diffusers loads them: bitsandbytes through `from_pretrained`, which asks for a GPU."""
    pipe, model = on_device("flux", backend, tmp_path, "cuda")
    before = kept(model)
    made = worker(pipe, "flux")
    made.unlearn(TARGET, ANCHOR)
    assert made.history[-1].distance < 0.6 * made.history[0].distance
    assert_same(kept(model), before)


def test_weights_are_counted_as_they_are_stored(case) -> None:
    """Up to scales that are kept beside a tensor, and buffers that no file holds."""
    stored = sum(part.nbytes for parts in case.kept.values() for part in parts)
    adapter = sum(p.nbytes for n, p in case.model.named_parameters() if "lora_" in n)
    assert 0.5 * stored < weight_bytes(case.model) - adapter < 1.1 * stored
