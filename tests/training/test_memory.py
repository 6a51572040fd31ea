"""Estimates against an account of every storage that PyTorch's operations make."""

from __future__ import annotations

import weakref

import pytest
import torch
from accelerate import cpu_offload
from families import FAMILIES
from tiny import add_other_adapter, state, unlearner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_fdu import FDUnlearner
from diffusers_fdu.data.plan import RunContext
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.pipelines.denoiser import denoiser_name
from diffusers_fdu.settings import settings
from diffusers_fdu.training.memory import footprint
from diffusers_fdu.training.memory_trace import weight_bytes


class Account(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def add(self, tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if torch.is_tensor(value):
                self.add(value)
        return found


def compared(pipe, run=None, **options) -> float:
    """Estimated bytes of a training's second step, as a share of those counted."""
    worker = FDUnlearner(
        pipe,
        {**(run or {}), "num_inference_steps": 2},
        False,
        retain=["a tree"],
        init="lora",
        trajectories=2,
        early_stop=0.0,
        **{"steps": 2, "batch_size": 16, **options},
    )
    found = worker.estimate()
    buffer = worker.record("dog", "a grey cat")
    account = Account()

    def callback(record) -> None:
        """Count the second step, whose moments are there from the first."""
        if record.step == 0:
            for name, parameter in worker.model.named_parameters():
                account.add(parameter)
                account.now += 2 * parameter.nbytes if "lora_" in name else 0
            account.__enter__()
        else:
            account.__exit__(None, None, None)

    worker.unlearn("dog", "a grey cat", buffer=buffer, callback=callback)
    return (found.training - found.parts["text encoders and autoencoder"]) / account.peak


LEAST = {"micro_batch_size": 1, "gradient_checkpointing": True, "record_batch": 1}
CHOICES = ({}, {"gradient_checkpointing": True}, LEAST, {"surgery": True})


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_the_estimate_of_the_embedded_model(options) -> None:
    assert 0.95 < compared(load_emoji_pipeline(), **options) < 1.3


@pytest.mark.parametrize("options", CHOICES[:2], ids=str)
@pytest.mark.parametrize("key", ["sdxl", "flux", "pixart_sigma", "qwen_image"])
def test_estimates_of_tiny_models(key, options) -> None:
    """Which consist mostly of what the estimate has roughly."""
    family = FAMILIES[key]
    assert 0.8 < compared(family.build(), family.run, **options) < 1.7


@pytest.mark.parametrize("kind", [None, "model", "sequential"])
def test_an_estimate_leaves_the_pipe_as_it_was(pipe, kind) -> None:
    add_other_adapter(pipe)
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif kind == "sequential":
        cpu_offload(pipe.unet, torch.device("cpu"))
    before = state(pipe)
    found = unlearner(pipe).estimate()
    assert state(pipe) == before
    whole = sum(p.numel() * p.element_size() for p in pipe.unet.parameters())
    denoiser = found.parts["denoiser"]
    assert denoiser < whole / 2 if kind == "sequential" else denoiser == whole
    text = weight_bytes(pipe.text_encoder) + weight_bytes(pipe.vae)
    assert found.parts["text encoders and autoencoder"] == (0 if kind == "model" else text)
    assert found.parts["a micro-batch"] > 0
    assert found.parts["adapter, its gradients and moments"] > 0


def test_streamed_weights_stay_unless_gradients_are_checkpointed() -> None:
    """Autograd holds on to what a layer's gradient needs, and so to weights brought for it."""

    def kept(streams: bool, **options) -> int:
        family = FAMILIES["sdxl"]
        pipe = family.build()
        if streams:
            cpu_offload(pipe.unet, torch.device("cpu"))
        worker = FDUnlearner(pipe, family.run, False, batch_size=1, **options)
        return worker.estimate().parts["a micro-batch"]

    whole = weight_bytes(FAMILIES["sdxl"].build().unet)
    more = [
        kept(True, gradient_checkpointing=on) - kept(False, gradient_checkpointing=on)
        for on in (False, True)
    ]
    assert more[0] > whole / 2 and 0 <= more[1] < whole / 5


# Among them those that come nearest to the bound.
BOUNDED = ("emoji", "sdxl", "sd3", "chroma", "auraflow", "z_image", "wan")


@pytest.mark.parametrize("key", BOUNDED)
def test_what_is_too_small_to_be_traced_is_within_its_bound(key) -> None:
    family = FAMILIES.get(key)
    pipe = family.build() if family else load_emoji_pipeline()
    run = family.run if family else {}
    found = footprint(RunContext(pipe, denoiser_name(pipe), settings({}), run))
    traced = found.pass_bytes(2 * 16 * found.rows)
    assert traced < (found.bound(16) - found.all_weights) / 2
    assert found.bound(16) < 2**33  # so that the bound is of use


def test_weights_are_counted_as_they_are_stored() -> None:
    module = torch.nn.Linear(8, 4).to(torch.bfloat16)
    assert weight_bytes(module) == 2 * (8 * 4 + 4)
    module.register_buffer("table", torch.zeros(3, dtype=torch.int8))
    assert weight_bytes(module) == 2 * (8 * 4 + 4) + 3
