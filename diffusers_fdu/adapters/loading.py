"""A pipe's adapters to files and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..pipelines.denoiser import DENOISERS, denoiser_name
from ..pipelines.offload import onloaded
from . import lora as adapters
from .adapter_file import AdapterFile, Format
from .contents import EMBEDDED, is_repo_id
from .download import local_folder
from .read import read_adapter
from .write import write_adapter


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
    """Write an adapter that is on a pipe.

    Args:
        pipe: the pipeline.
        component: "unet", "transformer" or "transformer_2".
        adapter_name: which adapter.
        folder: an existing folder.
        format: see `write_adapter`.

    Raises:
        ValueError: see `check_format`.
    """
    check_format(pipe, format)
    model = getattr(pipe, component)
    with onloaded(model):
        layers = get_peft_model_state_dict(model, adapter_name=adapter_name)
        # A denoiser that was compiled since has other names for its layers.
        layers = {name.replace("_orig_mod.", ""): value for name, value in layers.items()}
        config = lora_metadata(model, adapter_name)
        write_adapter(folder, format, component, layers, config)


def load_unlearned(
    pipe: Any, source: str | Path, adapter_name: str | None = None, component: str | None = None
) -> Any:
    """Load an adapter that `FDUnlearner.save` or `merge` wrote, in either format.

    Args:
        pipe: a pipeline like the one that it was trained on.
        source: what it was saved to; or, if there is no such folder, `user/name` on the Hub (see
            `pull`).
        adapter_name: its name on the pipe; None: the one it was trained with, or with a number
            if that is taken, or that of the source.
        component: the denoiser that it is for; None: the one it was trained on, by its recipe.

    Returns:
        The same pipe, the adapter frozen and active beside those that were.

    Raises:
        ValueError: if the folder holds no adapter to be trusted (see `read_adapter`), it is for
            another denoiser, the name is taken, or the pipe's adapters are fused or off. The
            pipe is as it was then.
        HubError: if the Hub does not give it.

    A warning says so if it was trained on another model of the same architecture.
    """
    load_adapter(pipe, source, adapter_name, component)
    return pipe


def load_adapter(
    pipe: Any, source: str | Path, adapter_name: str | None, component: str | None
) -> tuple[str, str]:
    """See `load_unlearned`.

    Returns:
        The denoiser that it is on, and its name there.
    """
    found = read_adapter(local_folder(source))
    component = denoiser_name(pipe, component or _component(found))
    model = getattr(pipe, component)
    check_fits(found, model)
    adapters.check_layers(model)
    own = found.recipe.get("adapter_name") or Path(source).resolve().name
    name = adapter_name or adapters.free_name(adapters.slug(own) or "adapter", model)
    adapters.check_adapter_name(name, model)
    before = adapters.snapshot(model)
    try:
        # What was checked is what is loaded: the file is not read again.
        with onloaded(model), torch.random.fork_rng(devices=[]):
            adapters.inject(model, found.lora_config(), name)
            inside = get_peft_model_state_dict(model, adapter_name=name)
            if inside.keys() != found.state.keys():
                odd = sorted(inside.keys() ^ found.state.keys())[0]
                raise ValueError(f"{str(source)!r} does not fit: {odd} is here or there alone")
            set_peft_model_state_dict(model, found.state, adapter_name=name)
            adapters.finish(model, name, before)
    except BaseException:
        adapters.remove(model, name, before)
        raise
    adapters.activate(model, [*before.active, name])
    adapters.restore_flags(model, before)
    _warn_of_another_model(found, pipe)
    return component, name


def _component(found: AdapterFile) -> str | None:
    """The denoiser that it says it is for; PEFT's files do not say."""
    own = found.recipe.get("component")
    return own if own in DENOISERS else None if found.format == "peft" else found.component


def _warn_of_another_model(found: AdapterFile, pipe: Any) -> None:
    """Two names that are known and differ; paths say nothing."""
    names = [found.recipe.get("base_model"), getattr(pipe, "name_or_path", None)]
    known = [
        name
        for name in names
        if isinstance(name, str) and (name == EMBEDDED or is_repo_id(name))
        if not Path(name).is_dir()
    ]
    if len(known) == 2 and known[0].casefold() != known[1].casefold():
        warnings.warn(
            f"the adapter was trained on {known[0]!r}, and this is {known[1]!r}: its layers fit, "
            "but look at what it does",
            UserWarning,
            stacklevel=3,
        )


def check_fits(found: AdapterFile, model: nn.Module) -> None:
    """Refuse an adapter whose layers the denoiser does not have, or has in other sizes.

    Raises:
        ValueError: with the first that does not fit.
    """
    for name, (down, up) in found.modules.items():
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError:
            layer = None
        if layer is None or not hasattr(layer, "weight"):
            here = "there is no such layer here"
        else:
            base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
            features = [
                getattr(base, f"{side}_features", getattr(base, f"{side}_channels", None))
                for side in ("in", "out")
            ]
            kernel = tuple(getattr(base, "kernel_size", ()))
            if features == [down.shape[1], up.shape[0]] and kernel == tuple(down.shape[2:]):
                continue
            here = f"it takes {features[0]} and gives {features[1]} here"
        trained = found.recipe.get("pipeline")
        raise ValueError(
            f"{str(found.folder)!r} is no adapter for this {type(model).__name__}: {name} takes "
            f"{down.shape[1]} and gives {up.shape[0]} there, and {here}"
            + (f"; it was trained on a {trained!r}" if trained else "")
        )
