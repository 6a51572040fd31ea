from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import typer
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

from diffusers_fdu.adapters import download, read
from diffusers_fdu.app import server
from diffusers_fdu.cli import app
from diffusers_fdu.cli.pipeline import load_pipeline, resolve_placement
from diffusers_fdu.emoji import loading
from diffusers_fdu.evaluation import adapter_under_test as subjects

COMMANDS = typer.main.get_command(app).commands
LOADING = {  # every command that loads a pipeline, and the least that makes it do so
    "demo": ["--output-dir", "OUT"],
    "unlearn": ["--model", "emoji", "--target", "dog", "--output-dir", "OUT"],
    "compare": ["--model", "emoji", "--target", "dog", "--output-dir", "OUT"],
    "evaluate": ["adapter", "--report", "OUT"],
    "stack": ["adapter", "--model", "emoji"],
    "merge": ["a", "b", "--refine", "--model", "emoji", "--output-dir", "OUT"],
    "app": ["--model", "emoji", "--adapters", "adapter"],
}


class Loaded(Exception):
    """The device and the dtype of the pipeline that a command would have loaded."""


@pytest.fixture
def cuda(monkeypatch):
    """A function that pretends a CUDA device, with or without bfloat16 of its own."""
    asked = []

    def pretend(is_bf16: bool) -> list:
        def supported(including_emulation=True):
            return is_bf16 or including_emulation

        def device(name):
            asked.append(str(name))
            return nullcontext()

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
        return asked

    return pretend


@pytest.fixture
def precision():
    """Puts the precision of products back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield torch.get_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def loaded(monkeypatch, command: str, *extra: str) -> tuple:
    """Where a command puts its pipeline, and in which dtype: nothing is loaded or read."""

    def load(*args, torch_dtype):
        def to(device):
            raise Loaded(device, str(torch_dtype).removeprefix("torch."))

        return SimpleNamespace(to=to)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    monkeypatch.setattr(loading, "load_emoji_pipeline", load)
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    monkeypatch.setattr(download, "local_folder", lambda source: source)
    recipe = {"base_model": "a/model"}
    monkeypatch.setattr(read, "read_adapter", lambda _: SimpleNamespace(recipe=recipe))
    merging = importlib.import_module("diffusers_fdu.adapters.merging.merge")
    monkeypatch.setattr(merging, "merge", lambda *args, **options: None)
    monkeypatch.setattr(subjects, "concepts_of", lambda *_: [])
    result = CliRunner().invoke(app, [command, *extra])
    assert isinstance(result.exception, Loaded), result.exception
    return result.exception.args


def arguments(command: str, folder) -> list[str]:
    return [str(folder / "out") if a == "OUT" else a for a in LOADING[command]]


def options(command: str) -> dict:
    return {option.name: option for option in COMMANDS[command].params}


def test_every_command_that_loads_a_pipeline_is_known_here() -> None:
    for name in COMMANDS:
        has = {"device", "dtype"} & set(options(name))
        assert len(has) == (2 if name in LOADING else 0), name
        assert name in LOADING or "model" not in options(name)


@pytest.mark.parametrize("command", LOADING)
def test_commands_settle_device_and_dtype_alike(
    monkeypatch, tmp_path, cuda, precision, command
) -> None:
    assert options(command)["dtype"].default == "auto"
    assert options(command)["device"].default is None
    given = arguments(command, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loaded(monkeypatch, command, *given) == ("cpu", "float32")
    assert loaded(monkeypatch, command, *given, "--dtype", "float16") == ("cpu", "float16")
    cuda(is_bf16=True)
    assert loaded(monkeypatch, command, *given) == ("cuda:0", "bfloat16")
    assert loaded(monkeypatch, command, *given, "--dtype", "float32") == ("cuda:0", "float32")
    assert loaded(monkeypatch, command, *given, "--device", "cpu") == ("cpu", "float32")
    cuda(is_bf16=False)  # a card that only emulates it
    assert loaded(monkeypatch, command, *given) == ("cuda:0", "float16")


def test_the_device_that_is_used_is_asked_for_bfloat16(monkeypatch, cuda) -> None:
    asked = cuda(is_bf16=True)
    assert resolve_placement("cuda:1", "auto") == ("cuda:1", "bfloat16")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_placement(None, "auto") == ("cuda:3", "bfloat16")
    assert asked == ["cuda:1", "cuda:3"]


def test_other_accelerators_keep_float32(cuda) -> None:
    cuda(is_bf16=True)
    assert resolve_placement("mps", "auto") == ("mps", "float32")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown dtype 'half': choose auto, float32, bfloat16"):
        resolve_placement("cpu", "half")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda:0", "float32", "high"),
        ("cuda:0", "bfloat16", "highest"),
        ("cpu", "float32", "highest"),
    ],
)
def test_tf32_is_for_float32_on_cuda(
    monkeypatch, cuda, precision, device, dtype, expected
) -> None:
    cuda(is_bf16=True)
    made = SimpleNamespace(to=lambda device: device)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_pipeline("some/model", device, dtype) == device
        assert precision() == expected
        # Flags of both kinds can still be read: mixed, they would raise.
        assert torch.backends.cuda.matmul.allow_tf32 == (expected == "high")
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == (expected == "high")


def test_the_embedded_model_takes_the_dtype() -> None:
    pipe = load_pipeline("emoji", "cpu", "bfloat16")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
