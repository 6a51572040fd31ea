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
from diffusers_fdu.config import Settings
from diffusers_fdu.emoji import load_emoji_pipeline
from diffusers_fdu.memory import plan, weight_bytes


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
    return (found.training - found.others) / account.peak


CHOICES = ({}, {"gradient_checkpointing": True}, {"low_vram": True}, {"surgery": True})


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_the_estimate_of_the_embedded_model(options) -> None:
    assert 0.95 < compared(load_emoji_pipeline(), **options) < 1.3


@pytest.mark.parametrize("options", CHOICES[:2], ids=str)
@pytest.mark.parametrize("key", ["sdxl", "flux", "pixart_sigma", "qwen_image"])
def test_estimates_of_tiny_models(key, options) -> None:
    """Which consist mostly of what the estimate has roughly."""
    family = FAMILIES[key]
    assert 0.8 < compared(family.build(), family.run, **options) < 1.7


def test_low_vram_asks_about_two_rows_at_most(pipe, capsys) -> None:
    options = {"batch_size": 4, "gradient_accumulation_steps": 2, "retain_from": "mined"}
    worker = unlearner(pipe, low_vram=True, steps=2, **options)
    assert (worker.config.batch_size, worker.config.gradient_accumulation_steps) == (1, 8)
    assert worker.performance.gradient_checkpointing and worker.performance.offload
    worker.progress = True
    rows = []
    pipe.unet.conv_in.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    worker.unlearn("dog", "cat")
    assert max(rows) == 2
    assert len(rows) > 16  # the two steps alone
    assert not pipe.unet.is_gradient_checkpointing
    shown = capsys.readouterr().out
    assert "8 micro-batches of 1 row of each role in a step" in shown
    assert "training takes about 0.00 GiB" in shown
    assert worker.recipe["config"]["record_batch"] == 1


def test_low_vram_without_gradient_checkpointing(pipe, monkeypatch) -> None:
    monkeypatch.setattr(type(pipe.unet), "_supports_gradient_checkpointing", False)
    worker = unlearner(pipe, low_vram=True)
    assert not worker.performance.gradient_checkpointing
    assert "gradient checkpointing: this model has none" in plan(
        Settings(worker.config, worker.data, worker.performance), worker.estimate()
    )


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
    assert found.denoiser < whole / 2 if kind == "sequential" else found.denoiser == whole
    text = weight_bytes(pipe.text_encoder) + weight_bytes(pipe.vae)
    assert found.others == (0 if kind == "model" else text)
    assert found.activations > 0 and found.adapter > 0


def test_streamed_weights_stay_unless_gradients_are_checkpointed() -> None:
    """Autograd holds on to what a layer's gradient needs, and so to weights brought for it."""

    def kept(streams: bool, **options) -> int:
        family = FAMILIES["sdxl"]
        pipe = family.build()
        if streams:
            cpu_offload(pipe.unet, torch.device("cpu"))
        return FDUnlearner(pipe, family.run, False, batch_size=1, **options).estimate().activations

    whole = weight_bytes(FAMILIES["sdxl"].build().unet)
    more = [
        kept(True, gradient_checkpointing=on) - kept(False, gradient_checkpointing=on)
        for on in (False, True)
    ]
    assert more[0] > whole / 2 and 0 <= more[1] < whole / 5


def test_weights_are_counted_as_they_are_stored() -> None:
    module = torch.nn.Linear(8, 4).to(torch.bfloat16)
    assert weight_bytes(module) == 2 * (8 * 4 + 4)
    module.register_buffer("table", torch.zeros(3, dtype=torch.int8))
    assert weight_bytes(module) == 2 * (8 * 4 + 4) + 3
