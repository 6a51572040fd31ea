"""Adapters as files: what diffusers loads, and what PEFT loads where diffusers has no loader."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn

from . import adapters
from .denoiser import DENOISERS, denoiser_name
from .offload import onloaded
from .recipe import RECIPE_NAME

Format = Literal["diffusers", "peft"]

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS_NAME, PEFT_CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of every name in PEFT's own files


def has_loader(pipe: Any) -> bool:
    """Whether diffusers saves and loads LoRA weights for this pipeline."""
    return hasattr(pipe, "save_lora_weights")


def check_format(pipe: Any, format: str) -> None:
    """Refuse a format that this pipeline's adapters cannot be written in.

    Raises:
        ValueError: with one that works.
    """
    if format not in ("diffusers", "peft"):
        raise ValueError(f"unknown format {format!r}: choose diffusers or peft")
    if format == "diffusers" and not has_loader(pipe):
        raise ValueError(
            f"{type(pipe).__name__} has no LoRA loader in diffusers: use format='peft', and "
            "load it with diffusers_fdu.load_unlearned or peft.PeftModel.from_pretrained"
        )


def lora_metadata(model: nn.Module, adapter_name: str) -> dict[str, Any]:
    """What a file needs beside the weights; without it alpha is read as the rank.

    Not the whole LoraConfig: older PEFT versions refuse fields that they do not know.
    """
    config: Any = model.peft_config[adapter_name]  # type: ignore[index]
    modules = config.target_modules
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
        # diffusers 0.37 reads the first of these without asking whether it is there.
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
    }


def save_adapter(
    pipe: Any, component: str, adapter_name: str, folder: Path, format: Format = "diffusers"
) -> None:
    """Write an adapter.

    Args:
        pipe: the pipeline.
        component: "unet", "transformer" or "transformer_2".
        adapter_name: which adapter.
        folder: an existing folder.
        format: "diffusers": `pytorch_lora_weights.safetensors`, as
            `pipe.load_lora_weights(folder)` reads it. "peft": `adapter_model.safetensors` and
            `adapter_config.json`, as `PeftModel.from_pretrained(denoiser, folder)` reads them.

    Raises:
        ValueError: see `check_format`.
    """
    check_format(pipe, format)
    model = getattr(pipe, component)
    with onloaded(model):
        layers = get_peft_model_state_dict(model, adapter_name=adapter_name)
        layers = {name: value.contiguous() for name, value in layers.items()}
    metadata = lora_metadata(model, adapter_name)
    # Written beside it and moved, so that a failure leaves an older file whole.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if format == "peft":
            name, config = PEFT_WEIGHTS_NAME, Path(temporary) / PEFT_CONFIG_NAME
            named = {f"{PEFT_PREFIX}{key}": value for key, value in layers.items()}
            save_file(named, Path(temporary) / name, {"format": "pt"})
            content = {"peft_type": "LORA", "inference_mode": True, **metadata}
            config.write_text(json.dumps(content, indent=2) + "\n")
            config.replace(folder / PEFT_CONFIG_NAME)
        else:
            name = WEIGHTS_NAME
            # One of a second denoiser looks like one of the first: it is told when loading.
            kind = component.removesuffix("_2")
            given = {f"{kind}_lora_layers": layers, f"{kind}_lora_adapter_metadata": metadata}
            pipe.save_lora_weights(temporary, weight_name=name, **given)
        # A new file, since safetensors lets nobody but the owner read its own.
        path = Path(temporary) / "sorted"
        path.write_bytes(_with_sorted_header((Path(temporary) / name).read_bytes()))
        path.replace(folder / name)
    # What the folder held before in the other format is another adapter.
    others = (WEIGHTS_NAME,) if format == "peft" else (PEFT_WEIGHTS_NAME, PEFT_CONFIG_NAME)
    for other in others:
        (folder / other).unlink(missing_ok=True)


def _with_sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys sorted; they are written in a random order.

    The format: 8 bytes of length, a JSON header padded with spaces, the data.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + content[end:]


def load_unlearned(
    pipe: Any,
    directory: str | Path,
    adapter_name: str | None = None,
    component: str | None = None,
) -> Any:
    """Load an adapter that `FDUnlearner.save` wrote, in either format.

    Args:
        pipe: a pipeline like the one that it was trained on.
        directory: what it was saved to.
        adapter_name: its name on the pipe; None: the one it was trained with.
        component: the denoiser that it is for; None: the one it was trained on, by its recipe.

    Returns:
        The same pipe, the adapter frozen and active beside those that were.

    Raises:
        ValueError: if the folder holds no adapter, diffusers has no loader for it, it is for
            another denoiser, or the name is taken. The pipe is as it was then.
    """
    folder = Path(directory)
    recipe = folder / RECIPE_NAME
    facts = json.loads(recipe.read_text()) if recipe.exists() else {}
    component = denoiser_name(pipe, component or facts.get("component"))
    model = getattr(pipe, component)
    name = adapter_name or facts.get("adapter_name")
    name = name or adapters.default_adapter_name([folder.name], model)
    adapters.check_adapter_name(name, model)
    before = adapters.snapshot(model)
    try:
        if (folder / WEIGHTS_NAME).exists():
            if not has_loader(pipe):
                raise ValueError(f"{type(pipe).__name__} has no LoRA loader in diffusers")
            second = {f"load_into_{component}": True} if component == DENOISERS[-1] else {}
            pipe.load_lora_weights(folder, weight_name=WEIGHTS_NAME, adapter_name=name, **second)
        elif (folder / PEFT_CONFIG_NAME).exists():
            _load_peft(model, folder, name)
        else:
            raise ValueError(
                f"{str(folder)!r} holds neither {WEIGHTS_NAME} nor {PEFT_CONFIG_NAME}: pass the "
                "folder that an adapter was saved to"
            )
        if name not in getattr(model, "peft_config", {}):
            raise ValueError(f"{str(folder)!r} holds no adapter for {type(model).__name__}")
    except BaseException:
        adapters.remove(model, name, before)
        raise
    adapters.activate(model, [*before.active, name])
    adapters.restore_flags(model, before)
    return pipe


def _load_peft(model: nn.Module, folder: Path, name: str) -> None:
    """Put an adapter of PEFT's own format on a denoiser.

    Raises:
        ValueError: if its weights are not those of an adapter of this denoiser.
    """
    config = LoraConfig.from_pretrained(str(folder))
    state = load_file(folder / PEFT_WEIGHTS_NAME)
    state = {key.removeprefix(PEFT_PREFIX): value for key, value in state.items()}
    with onloaded(model):
        before = adapters.snapshot(model)
        inject_adapter_in_model(config, model, name)
        own = get_peft_model_state_dict(model, adapter_name=name)
        shapes = ({k: tuple(v.shape) for k, v in values.items()} for values in (own, state))
        expected, found = shapes
        if expected != found:
            odd = sorted(expected.items() ^ found.items())[0]
            raise ValueError(
                f"{str(folder)!r} is no adapter for this {type(model).__name__}: {odd[0]} is "
                f"{found.get(odd[0])} there and {expected.get(odd[0])} here"
            )
        set_peft_model_state_dict(model, state, adapter_name=name)
        adapters.finish(model, name, before)
