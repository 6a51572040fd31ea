"""Fitting a training to a device, and that no choice changes the adapter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from conftest import build_tiny_pipe
from tiny import state, unlearner
from torch import nn

from diffusers_fdu import NegativeGuidance, Robust, Variational
from diffusers_fdu.settings import Settings, settings
from diffusers_fdu.training.auto_fit import SHARE, choose, model_offload
from diffusers_fdu.training.memory import GIB, Estimate


class Checkpointable(nn.Module):
    """A denoiser that has gradient checkpointing, or not."""

    def __init__(self, has: bool = True) -> None:
        super().__init__()
        self._supports_gradient_checkpointing = has


@dataclass
class Known:
    """A footprint in whole GiB: weights, and what a row takes in each way."""

    weights: float
    plain: float
    checkpointed: float
    others: float = 0.0
    inference: float = 0.1
    settings: Settings = field(default_factory=lambda: settings({}))
    model: nn.Module = field(default_factory=Checkpointable)
    can_take_turns: bool = False

    @property
    def leaving(self) -> float:
        return self.others

    def estimate(self, size, record, checkpoints, offload, turns=False) -> Estimate:
        row = self.checkpointed if checkpoints else self.plain
        training = self.weights + 2 * size * row + (0 if offload else self.others)
        whole = max(self.weights, self.others) if turns else self.weights + self.others
        recording = whole + 2 * record * self.inference
        start = self.weights + 2 * size * self.inference
        return Estimate(*(int(x * GIB) for x in (recording, start, training)), None)


def chosen(known: Known, gib: float) -> tuple:
    found = choose(known, int(gib * GIB))
    own = found.performance
    return own.micro_batch_size, own.gradient_checkpointing is True, own.offload, own.record_batch


SDXL = Known(4.8, 4.9, 0.63, others=1.8, inference=0.35)


def test_plenty_changes_nothing() -> None:
    assert chosen(SDXL, 250) == (16, False, False, 8)


def test_setting_aside_comes_before_fewer_rows_and_checkpointing_after_them() -> None:
    # 16 rows of each role take 161.6 GiB, and 163.4 with text encoders and autoencoder.
    assert chosen(SDXL, 192) == (16, False, True, 8)
    assert chosen(SDXL, 102) == (8, False, False, 8)
    assert chosen(SDXL, 18) == (1, False, True, 8)
    assert chosen(SDXL, 12) == (4, True, True, 4)
    assert chosen(SDXL, 8) == (1, True, True, 1)
    assert not choose(SDXL, 8 * GIB).fits  # 6.6 GiB of weights while it records


def test_where_recording_does_not_fit_the_models_take_turns() -> None:
    known = replace(SDXL, can_take_turns=True)
    found = choose(known, 8 * GIB)
    assert found.fits and found.offloads_recording
    assert chosen(known, 8) == (1, True, True, 2)
    assert not choose(known, 12 * GIB).offloads_recording
    kept = replace(known, settings=settings({"offload": False}))
    assert not choose(kept, 8 * GIB).offloads_recording


def test_the_largest_that_fits_is_taken() -> None:
    """Against every choice there is."""
    for gib in range(8, 200, 3):
        size, checkpoints, offload, record = chosen(SDXL, gib)
        budget = SHARE * gib * GIB
        fits = [
            one
            for one in itertools.product((False, True), (16, 8, 4, 2, 1), (False, True))
            if SDXL.estimate(one[1], 1, one[0], one[2]).training <= budget
        ]
        expected = min(fits, key=lambda one: (one[0], -one[1], one[2]))
        assert (checkpoints, size, offload) == expected


def test_what_was_set_is_kept() -> None:
    options = {"micro_batch_size": 3, "gradient_checkpointing": False, "record_batch": 5}
    known = Known(4.8, 4.9, 0.63, settings=settings({**options, "offload": False}))
    assert chosen(known, 12) == (3, False, False, 5)
    known.settings = settings({"gradient_checkpointing": True})
    assert chosen(known, 300)[:2] == (16, True)


def test_without_gradient_checkpointing_the_rows_are_all_that_can_shrink() -> None:
    assert chosen(Known(4.8, 1.0, 0.1, model=Checkpointable(False)), 20)[:2] == (4, False)


def test_where_nothing_fits_the_smallest_is_tried() -> None:
    found = choose(Known(20, 20, 2), 8 * GIB)
    assert not found.fits
    assert found.performance.micro_batch_size == 1 and found.performance.gradient_checkpointing


@pytest.mark.parametrize("batch", [6, 1, 16])
def test_micro_batches_of_any_batch(batch) -> None:
    known = Known(1, 1, 1, settings=settings({"batch_size": batch}))
    sizes = {chosen(known, gib)[0] for gib in range(3, 60)}
    assert sizes == {6: {6, 3, 2, 1}, 1: {1}, 16: {16, 8, 4, 2, 1}}[batch]


# What follows trains the tiny pipe.

WAYS = {
    "plain": {},
    # With many steps of the critic, rounding alone leads elsewhere.
    "variational": {"estimator": Variational(warmup_steps=2, critic_steps=2)},
    "surgery": {"surgery": True},
    "robust": {"robust": Robust(every=2, steps=3, batch=6, prompts=2, pictures=4)},
}
SMALL = {"micro_batch_size": 2, "gradient_checkpointing": True, "record_batch": 3}


@cache
def whole(way: str) -> torch.Tensor:
    """The adapter of a training in which everything fits."""
    return trained(**WAYS[way])


def trained(pipe=None, **options) -> torch.Tensor:
    """All weights of an adapter for two concepts, one of them of negative guidance."""
    pipe = pipe or build_tiny_pipe()
    options = {"batch_size": 5, "trajectories": 3, "steps": 4, **options}
    worker = unlearner(pipe, **options)
    worker.unlearn(["dog", "tree"], ["cat", NegativeGuidance(1.0)])
    return torch.cat([p.flatten() for n, p in pipe.unet.named_parameters() if "lora_" in n])


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two adapters are the same within rounding.

    Adam moves a weight by a whole step where its gradient is nothing but rounding, so weights are
    not compared one by one.
    """
    return bool(torch.dist(one, other) < 0.05 * other.norm())


@pytest.mark.parametrize("way", WAYS)
def test_micro_batches_change_nothing(way) -> None:
    assert close(trained(**SMALL, **WAYS[way]), whole(way))


def test_other_rows_are_another_adapter() -> None:
    """So that the comparisons here can fail."""
    assert not close(trained(seed=1), whole("plain"))


class Injected:
    """Makes a denoiser run out of memory.

    Args:
        model: the denoiser.
        fails: of the number of a call and its rows, whether it does.
        backward: the call itself succeeds, and its gradient fails.
    """

    def __init__(self, model: nn.Module, fails, backward: bool = False) -> None:
        self.fails, self.backward, self.calls, self.raised = fails, backward, 0, 0
        model.register_forward_hook(self.look)

    def look(self, module, args, output) -> None:
        sample = output[0]
        self.calls += 1
        if not self.fails(self.calls, len(sample)):
            return
        if not self.backward:
            self.give_up()
        if sample.requires_grad:
            sample.register_hook(self.give_up)

    def give_up(self, *_) -> None:
        self.raised += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_too_little_memory_changes_nothing(way, backward) -> None:
    pipe = build_tiny_pipe()
    injected = Injected(pipe.unet, lambda _, rows: rows > 4, backward)
    found = trained(pipe, **WAYS[way])
    assert injected.raised >= (1 if backward else 3)
    assert close(found, whole(way))


@pytest.mark.filterwarnings("ignore:out of memory")
def test_running_out_once_changes_nothing_whenever_it_happens() -> None:
    """While recording, at the closed-form start, at the first distances, in any step."""
    pipe = build_tiny_pipe()
    counted = Injected(pipe.unet, lambda *_: False)
    expected = trained(pipe)
    assert counted.calls > 12
    for number in range(1, counted.calls + 1, 2):
        pipe = build_tiny_pipe()
        injected = Injected(pipe.unet, lambda call, _, number=number: call == number)
        assert close(trained(pipe), expected), number
        assert injected.raised == 1


def test_where_not_a_row_fits_the_pipe_is_as_before(pipe) -> None:
    before = state(pipe)
    injected = Injected(pipe.unet, lambda call, _: call > 8)
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="out of memory with 1"):
        trained(pipe)
    assert injected.raised > 2
    pipe.unet._forward_hooks.clear()
    assert state(pipe) == before


@pytest.mark.filterwarnings("ignore:out of memory")
def test_checkpointing_is_the_last_resort_of_auto(pipe) -> None:
    def fails(call, rows) -> bool:
        return not pipe.unet.is_gradient_checkpointing

    injected = Injected(pipe.unet, fails, backward=True)
    worker = unlearner(pipe, steps=4)
    worker.unlearn("dog", "cat")
    assert injected.raised == 3  # with 4 rows, with 2 and with 1
    assert not pipe.unet.is_gradient_checkpointing and len(worker.history) == 4
    with pytest.raises(RuntimeError, match="out of memory"):
        unlearner(pipe, steps=4, gradient_checkpointing=False).unlearn("dog", "cat")


def test_models_that_take_turns_train_the_same_and_go_back(pipe) -> None:
    with model_offload(pipe, torch.device("cpu"), True):
        assert pipe._all_hooks
        found = trained(pipe)
    assert not pipe._all_hooks and not hasattr(pipe.text_encoder, "_hf_hook")
    assert torch.equal(found, whole("plain"))


def test_the_choice_is_said_and_kept(pipe, capsys) -> None:
    worker = unlearner(pipe, batch_size=6, micro_batch_size=4)
    worker.progress = True
    worker.unlearn("dog", "cat")
    shown = capsys.readouterr().err
    assert "StableDiffusion on " in shown and "micro-batch 4 of 6" in shown
    assert worker.recipe["performance"]["micro_batch_size"] == 4
    assert worker.recipe["performance"]["record_batch"] == 8
    assert worker.recipe["config"]["batch_size"] == 6
    assert "auto" not in worker.recipe["performance"].values()


def test_recorded_pictures_do_not_depend_on_how_many_at_once() -> None:
    found = []
    for batch in (8, 3):
        pipe = build_tiny_pipe()
        buffer = unlearner(pipe, trajectories=9, record_batch=batch).record("dog", "cat")
        found.append(buffer)
    one, other = found
    assert one.about == other.about
    for role in ("unlearn", "retain"):
        rows = [(role, i) for i in range(one.count(role))]
        assert one.entries(role) == other.entries(role)
        for a, b in zip(one.batch(rows, *WHERE)[0], other.batch(rows, *WHERE)[0], strict=True):
            torch.testing.assert_close(a.inputs, b.inputs, rtol=1e-2, atol=2e-3)


WHERE = torch.device("cpu"), torch.float32
