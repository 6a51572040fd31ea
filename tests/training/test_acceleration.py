from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import build_tiny_pipe, latents
from diffusers import UNet2DConditionModel
from tiny import state, unlearner
from torch import nn

from diffusers_fdu import PerformanceConfig
from diffusers_fdu.data.plan import RecordingPlan
from diffusers_fdu.training.acceleration import checkpointed, compiled, set_aside
from diffusers_fdu.training.optim import make_optimizer


def records(worker):
    return [(r.loss, r.distance, r.retain) for r in worker.history]


def same_records(worker, expected, rtol):
    torch.testing.assert_close(
        torch.tensor(records(worker)), torch.tensor(expected), rtol=rtol, atol=rtol / 100
    )
    return True


@pytest.fixture(scope="module")
def plain():
    """What training without any option does."""
    worker = unlearner(build_tiny_pipe(), steps=6)
    worker.unlearn("dog", "cat")
    return records(worker)


class Elsewhere(nn.Module):
    """A module that claims to be on an accelerator, and notes where it is sent."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.place = torch.device("cuda", 0)

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=self.place)

    def to(self, device):
        self.place = torch.device(device)
        self.log.append(str(device))
        return self


def test_idle_parts_leave_the_accelerator_and_come_back() -> None:
    text_encoder, unet = Elsewhere([]), Elsewhere([])
    pipe = SimpleNamespace(components={"text_encoder": text_encoder, "unet": unet, "scheduler": 1})
    with set_aside(pipe, unet):
        assert text_encoder.place.type == "cpu" and unet.place.type == "cuda"
    assert text_encoder.log == ["cpu", "cuda:0"] and unet.log == []
    with set_aside(pipe, unet, enabled=False):
        assert text_encoder.log == ["cpu", "cuda:0"]


def test_idle_parts_come_back_after_a_failure() -> None:
    text_encoder = Elsewhere([])
    pipe = SimpleNamespace(components={"text_encoder": text_encoder})
    with pytest.raises(KeyboardInterrupt), set_aside(pipe, nn.Linear(1, 1)):
        raise KeyboardInterrupt
    assert text_encoder.log == ["cpu", "cuda:0"]


@pytest.mark.parametrize("mark", ["_hf_hook", "hf_device_map", "hf_quantizer"])
def test_parts_that_others_move_stay(mark) -> None:
    text_encoder = Elsewhere([])
    setattr(text_encoder, mark, {"": 0})
    with set_aside(SimpleNamespace(components={"text_encoder": text_encoder}), nn.Linear(1, 1)):
        assert text_encoder.log == []


def test_compiled_training_is_the_same_training(pipe, plain, recwarn) -> None:
    worker = unlearner(pipe, steps=6, compile=True)
    before = state(pipe)["attributes"]
    compiled_names: set[str] = set()

    def look(record):
        compiled_names.update(
            type(m).__name__ for m in pipe.unet.modules() if m._compiled_call_impl is not None
        )

    worker.unlearn("dog", "cat", callback=look)
    assert compiled_names == {"BasicTransformerBlock"}
    assert not [w for w in recwarn if "cannot be compiled" in str(w.message)]
    assert same_records(worker, plain, 1e-3)
    assert all(m._compiled_call_impl is None for m in pipe.unet.modules())
    assert state(pipe)["attributes"] == sorted({*before, "peft_config"})
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), latents(build_tiny_pipe()))


def test_a_failing_compiler_is_named_and_left_out(pipe, plain, monkeypatch) -> None:
    def broken(self, *args, **kwargs):
        self._compiled_call_impl = None
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(nn.Module, "compile", broken)
    worker = unlearner(pipe, steps=6, compile=True)
    with pytest.warns(RuntimeWarning, match=r"compiled \(RuntimeError: no C\+\+ compiler\)"):
        worker.unlearn("dog", "cat")
    assert records(worker) == plain


def test_a_compiled_run_that_fails_is_undone() -> None:
    model = nn.Linear(2, 2)

    def trial():
        if model._compiled_call_impl is not None:
            raise RuntimeError("unsupported")

    with pytest.warns(RuntimeWarning, match="unsupported"), compiled(model, True, trial):
        assert model(torch.ones(1, 2)).shape == (1, 2) and model._compiled_call_impl is None


def test_what_the_user_compiled_stays_compiled() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].compile(backend="eager")
    with compiled(model, True, lambda: None):
        assert model._compiled_call_impl is not None
    assert model._compiled_call_impl is None and model[0]._compiled_call_impl is not None


def flags(model):
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    return [m.__dict__[n] for m in model.modules() for n in names if n in m.__dict__]


def test_gradient_checkpointing_computes_again_and_the_same(pipe, plain) -> None:
    calls: list[bool] = []
    block = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    worker = unlearner(pipe, steps=6, gradient_checkpointing=True)
    before = flags(pipe.unet)
    worker.unlearn("dog", "cat")
    assert same_records(worker, plain, 1e-4)
    assert sum(calls) == 2 * 6
    assert not pipe.unet.is_gradient_checkpointing
    assert flags(pipe.unet) == before


def test_gradient_checkpointing_that_was_on_stays_on(pipe) -> None:
    pipe.unet.enable_gradient_checkpointing()
    unlearner(pipe, steps=1).unlearn("dog", "cat")
    with checkpointed(pipe.unet, True):
        pass
    assert pipe.unet.is_gradient_checkpointing


def test_a_model_without_gradient_checkpointing_is_refused_before_recording(
    pipe, monkeypatch
) -> None:
    monkeypatch.setattr(UNet2DConditionModel, "_supports_gradient_checkpointing", False)
    worker = unlearner(pipe, gradient_checkpointing=True)
    monkeypatch.setattr(RecordingPlan, "run", lambda *args: pytest.fail("recorded"))
    with pytest.raises(ValueError, match="UNet2DConditionModel has no gradient checkpointing"):
        worker.unlearn("dog", "cat")


def test_8_bit_adamw_trains_like_adamw(pipe, plain) -> None:
    pytest.importorskip("bitsandbytes")
    worker = unlearner(pipe, steps=6, optimizer="adamw_8bit")
    worker.unlearn("dog", "cat")
    assert same_records(worker, plain, 0.05)


def test_8_bit_adamw_keeps_its_state_in_bytes() -> None:
    pytest.importorskip("bitsandbytes")
    parameter = nn.Parameter(torch.zeros(64, 128))
    optimizer = make_optimizer([parameter], 0.1, "adamw_8bit")
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8
    torch.testing.assert_close(parameter.detach(), torch.full((64, 128), -0.1), rtol=0.02, atol=0)


def test_8_bit_adamw_is_made_without_weight_decay(monkeypatch) -> None:
    made: list = []
    fake = SimpleNamespace(
        optim=SimpleNamespace(AdamW8bit=lambda parameters, **kwargs: made.append(kwargs))
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    make_optimizer([nn.Parameter(torch.zeros(1))], 0.1, "adamw_8bit")
    assert made == [{"lr": 0.1, "weight_decay": 0.0}]


def test_a_missing_bitsandbytes_names_the_pip_line(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "diffusers-fdu\[8bit\]"'):
        PerformanceConfig(optimizer="adamw_8bit")


def test_gradients_stop_at_the_earliest_adapted_layer(pipe) -> None:
    """Nothing before the first LoRA layer keeps activations for a backward pass."""
    needs: dict[str, bool] = {}
    first = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    watched = {
        "conv_in": pipe.unet.conv_in,
        "resnet": pipe.unet.down_blocks[1].resnets[0],
        "attn1": first.attn1,
        "attn2": first.attn2,
    }
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _, __, output, name=name: needs.__setitem__(name, output.requires_grad)
        )
    unlearner(pipe, steps=1).unlearn("dog", "cat")
    assert needs == {"conv_in": False, "resnet": False, "attn1": False, "attn2": True}


def test_nothing_is_retained_at_weight_0(pipe) -> None:
    sizes: list[int] = []
    worker = unlearner(pipe, retain_weight=0, steps=20)
    pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["sample"])) if not args else None,
        with_kwargs=True,
    )
    worker.unlearn("dog", "cat")
    assert sizes[-20:] == [4] * 20  # rows of one role
    assert {r.retain for r in worker.history} == {0.0}
    assert worker.history[-1].distance < 0.7 * worker.history[0].distance
    rows = worker.recipe["buffer"]
    # The anchor's own rows only: 4 runs of 2 or 3 steps, and those of the empty prompt.
    assert rows["retain"] < 2 * rows["unlearn"]
