"""Counting a call's memory on fake tensors against counting it on real ones."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from families import FAMILIES
from torch import nn

from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.pipelines.denoiser import denoiser_name
from diffusers_fdu.pipelines.recorder import Recorder, preserve_pipeline_state
from diffusers_fdu.training.acceleration import checkpointed
from diffusers_fdu.training.memory_trace import StorageCounter, denoiser_pass, peak_bytes, twin
from diffusers_fdu.utils.nested import unflatten

CHECKPOINTED = ("sd", "sd3", "flux", "wan")  # of each kind of denoiser one


def real(model, function, inputs) -> int:
    with StorageCounter([*model.parameters(), *model.buffers()]) as counter:
        function(inputs)
    return counter.peak


@pytest.mark.parametrize("key", FAMILIES)
def test_fake_tensors_take_what_real_ones_do(key) -> None:
    """Forward and backward, and with gradient checkpointing."""
    family = FAMILIES[key]
    pipe = family.build()
    own = getattr(pipe, denoiser_name(pipe))
    with preserve_pipeline_state(pipe):
        inputs = unflatten(Recorder(pipe, family.run).first_call(["a"] * 2).inputs)
    # The fake call has a twin of its own: what it caches must not be met by the real one.
    models = [twin(own), twin(own)]
    config = adapters.lora_config(own, 4, None, None)
    passes = []
    for model in models:
        trained = adapters.attach(model, "x", config, 0)
        passes.append(denoiser_pass(model, torch.enable_grad, trained))
    for checkpoints in (False, True) if key in CHECKPOINTED else (False,):
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(checkpointed(model, checkpoints))
            peak_bytes(models[0], passes[0], inputs)  # fills caches
            passes[1](inputs)
            fake = peak_bytes(models[0], passes[0], inputs)
            expected = real(models[1], passes[1], inputs)
        assert fake == pytest.approx(expected, rel=0.01)


def test_what_lives_at_once_is_counted() -> None:
    """Of three tensors of 4 KB that follow each other, two."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            with torch.no_grad():
                y = x + self.weight
                y = y + 1
                return y + 1

    model = Three()
    assert peak_bytes(model, model, torch.zeros(1024)) == 2 * 4096


def test_a_model_that_looks_at_values_is_run_for_real() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen: list[int] = []

        def forward(self, x):
            self.seen.append(int(x.sum()))
            return x + 1

    model = Looks()
    assert peak_bytes(model, model, torch.ones(1024)) >= 4096
    assert model.seen == [1024]


def test_a_model_that_runs_out_of_memory_when_run_for_real() -> None:
    model = nn.Linear(1, 1)

    def function(x) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert peak_bytes(model, function, torch.zeros(1)) is None


def test_a_model_that_cannot_run() -> None:
    model = nn.Linear(1, 1)
    with pytest.warns(RuntimeWarning, match="what memory Linear takes .*RuntimeError: mat1"):
        assert peak_bytes(model, model, torch.zeros(1, 3)) is None


def test_a_twin_shares_weights_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    own = twin(model)
    assert all(a is b for a, b in zip(own.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(own.buffers(), model.buffers(), strict=True))
    own[0].cache = torch.zeros(1)
    assert not hasattr(model[0], "cache")
