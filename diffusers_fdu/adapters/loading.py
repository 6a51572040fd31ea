"""A pipe's adapters to files and back."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..pipelines.denoiser import DENOISERS, denoiser_name
from ..pipelines.offload import onloaded
from . import lora as adapters
from .adapter_file import FILE_NAMES, AdapterFile, Format
from .download import Source, local_folder
from .hub_files import is_model_id
from .read import read_adapter
from .write import write_adapter


def has_loader(pipe: Any) -> bool:
    """Whether diffusers saves and loads LoRA weights for this pipeline."""
    return hasattr(pipe, "save_lora_weights")


def check_format(pipe: Any, format: str) -> None:
    """Refuse a format that this pipeline's adapters cannot be written in."""
    if format not in FILE_NAMES:
        raise ValueError(f"unknown format {format!r}: choose {' or '.join(FILE_NAMES)}")
    if format == "diffusers" and not has_loader(pipe):
        raise ValueError(
            f"{type(pipe).__name__} has no LoRA loader in diffusers: use format='peft', and load "
            "it with diffusers_fdu.load_unlearned"
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
    """Write an adapter that is on a pipe's denoiser to a folder that exists."""
    model = getattr(pipe, component)
    with onloaded(model):
        state = get_peft_model_state_dict(model, adapter_name=adapter_name)
        # A denoiser that was compiled since has other names for its layers.
        state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
        write_adapter(folder, format, component, state, lora_metadata(model, adapter_name))


def load_unlearned(
    pipe: Any, source: Source, adapter_name: str | None = None, component: str | None = None
) -> Any:
    """Load an adapter that `FDUnlearner.save` or `merge` wrote, in either format.

    Args:
        pipe: a pipeline like the one that the adapter was trained on; there is a warning if it is
            another model of the same architecture.
        source: the folder of the adapter, or its name on the Hub, `user/name`.
        adapter_name: its name on the pipe; by default the one in its recipe, or else that of the
            source, with a number if that is taken.
        component: the denoiser that it is for; by default the one that its recipe names.

    Returns:
        The same pipe, the adapter frozen and active beside those that were.

    Raises:
        ValueError: if the adapter is not to be trusted or does not fit the denoiser, the name is
            taken, or the pipe's adapters are fused or off. The pipe is then as it was.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> pipe = load_unlearned(pipe, "forget-dog")
        >>> pipe.get_active_adapters()
        ['forget-dog']
    """
    load_adapter(pipe, source, adapter_name, component)
    return pipe


def load_adapter(
    pipe: Any, source: Source, adapter_name: str | None = None, component: str | None = None
) -> tuple[str, str]:
    """See `load_unlearned`; returns the denoiser that the adapter is on, and its name there."""
    adapter_file = read_adapter(local_folder(source))
    recipe = adapter_file.recipe
    # PEFT's files do not say which denoiser they are for, unless there is a recipe.
    is_told = adapter_file.format == "diffusers" or recipe.get("component") in DENOISERS
    default_component = adapter_file.component if is_told else None
    component = denoiser_name(pipe, default_component if component is None else component)
    model = getattr(pipe, component)
    check_fits(adapter_file, model)
    adapters.check_layers(model)
    default = recipe.get("adapter_name") or Path(source).resolve().name
    name = adapter_name or adapters.free_name(adapters.ascii_slug(default) or "adapter", model)
    adapters.check_adapter_name(name, model)
    state_before = adapters.snapshot(model)
    try:
        # What was checked is what is loaded: the file is not read again.
        with onloaded(model), torch.random.fork_rng(devices=[]):
            adapters.inject(model, adapter_file.lora_config(), name)
            keys = get_peft_model_state_dict(model, adapter_name=name).keys()
            if keys != adapter_file.state.keys():
                odd = sorted(keys ^ adapter_file.state.keys())[0]
                raise ValueError(f"{str(source)!r} does not fit: {odd} is here or there alone")
            set_peft_model_state_dict(model, adapter_file.state, adapter_name=name)
            adapters.finish(model, name, state_before)
    except BaseException:
        adapters.remove(model, name, state_before)
        raise
    adapters.activate(model, [*state_before.active, name])
    _warn_of_another_model(adapter_file, pipe)
    return component, name


def _warn_of_another_model(adapter_file: AdapterFile, pipe: Any) -> None:
    """Warn if both base models have names, which differ; paths say nothing."""
    trained_on, here = adapter_file.recipe.get("base_model"), getattr(pipe, "name_or_path", None)
    if is_model_id(trained_on) and is_model_id(here) and trained_on.casefold() != here.casefold():
        warnings.warn(
            f"the adapter was trained on {trained_on!r}, and this is {here!r}: its layers fit, "
            "but look at what it does",
            UserWarning,
            stacklevel=3,
        )


def check_fits(adapter_file: AdapterFile, model: nn.Module) -> None:
    """Refuse an adapter whose layers the denoiser does not have, or has in other sizes."""
    named = model.named_modules(remove_duplicate=False)
    modules = {name.replace("_orig_mod.", ""): module for name, module in named}
    for name, (down, up, _) in adapter_file.layers.items():
        layer: Any = modules.get(name)
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        features = [
            getattr(base, f"{side}_features", getattr(base, f"{side}_channels", None))
            for side in ("in", "out")
        ]
        kernel = tuple(getattr(base, "kernel_size", ()))
        shape, expected = (*features, *kernel), (down.shape[1], up.shape[0], *down.shape[2:])
        if hasattr(base, "weight") and shape == expected:
            continue
        here = f"it takes {features[0]} and gives {features[1]} here"
        here = here if hasattr(base, "weight") else "there is no such layer here"
        pipeline = adapter_file.recipe.get("pipeline")
        raise ValueError(
            f"{str(adapter_file.folder)!r} is no adapter for this {type(model).__name__}: {name} "
            f"takes {down.shape[1]} and gives {up.shape[0]} there, and {here}"
            + (f"; it was trained on a {pipeline!r}" if pipeline else "")
        )
