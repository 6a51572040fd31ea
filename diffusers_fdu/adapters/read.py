"""Adapters read only if everything about them is as it should be; nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..pipelines.denoiser import DENOISERS
from ..utils.io import parse_json_object, read_json
from .adapter_file import (
    PEFT_CONFIG_NAME,
    PEFT_PREFIX,
    PEFT_WEIGHTS_NAME,
    WEIGHTS_NAME,
    AdapterFile,
    Format,
    by_pattern,
)
from .recipe import RECIPE_NAME

METADATA_NAME = "lora_adapter_metadata"  # diffusers' own, in the header

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
KEY = re.compile(r"(?P<module>\w+(\.\w+)*)\.lora_(?P<half>[AB])\.weight")
CHANGES_MATHS = (
    "use_dora",
    "use_rslora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "target_parameters",
    "layer_replication",
)
PATTERN = re.compile(r"\^?\w[\w.]*\$?")  # of the patterns in the metadata: names alone
UNET_PARTS = ("down_blocks.", "mid_block.", "up_blocks.")
LARGEST = 1e9  # rank or alpha


def read_adapter(directory: str | Path) -> AdapterFile:
    """Read an adapter; nothing in it is executed.

    Args:
        directory: a folder with `pytorch_lora_weights.safetensors`, or with PEFT's
            `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ValueError: with the reason, if the folder has no adapter in safetensors, links to files
            outside, weights that are no LoRA of a denoiser, that do not fit each other or their
            metadata, or that are not finite.
    """
    folder = Path(directory)
    if (folder / WEIGHTS_NAME).exists():
        format: Format = "diffusers"
        path = folder / WEIGHTS_NAME
    elif (folder / PEFT_CONFIG_NAME).exists() and (folder / PEFT_WEIGHTS_NAME).exists():
        format, path = "peft", folder / PEFT_WEIGHTS_NAME
    else:
        raise ValueError(_nothing_there(folder))
    _check_inside(path)
    try:
        recipe_path = folder / RECIPE_NAME
        recipe = checked_recipe(_json(recipe_path)) if recipe_path.exists() else {}
        tensors, header = _tensors(path)
        if format == "diffusers":
            component, state, config = _of_diffusers(tensors, header, recipe)
        else:
            component, state, config = _of_peft(tensors, _json(folder / PEFT_CONFIG_NAME), recipe)
        found = AdapterFile(folder, format, component, state, config, recipe)
        _check(found)
    except (ValueError, SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no adapter to be trusted: {error}") from error
    return found


def _nothing_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}: pass the folder that an adapter was saved to"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if pickles:
        return (
            f"{str(folder)!r} holds {pickles[0]!r}, a pickle, which could run any code: only "
            "safetensors is read"
        )
    return (
        f"{str(folder)!r} holds neither {WEIGHTS_NAME} nor {PEFT_CONFIG_NAME} with its "
        f"{PEFT_WEIGHTS_NAME}: pass the folder that an adapter was saved to"
    )


def _check_inside(path: Path) -> None:
    """Refuse links that lead out of the folder; the Hub's cache links to its own blobs."""
    folder = path.parent
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{str(path)!r} is a link that leaves the folder: refused")


def _json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if the file is none.
    """
    _check_inside(path)
    return read_json(path)


def checked_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe, if what is read of it has the types that it should have.

    Raises:
        ValueError: with what has not.
    """
    for name in ("adapter_name", "pipeline", "base_model"):
        if not isinstance(recipe.get(name), str | None):
            raise ValueError(f"the recipe's {name} is {recipe[name]!r:.80}, no text")
    concepts, parts = recipe.get("concepts", []), recipe.get("merged", [])
    if not isinstance(concepts, list) or not all(
        isinstance(c, dict) and isinstance(c.get("target"), str) for c in concepts
    ):
        raise ValueError("the recipe's concepts are no list of targets")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("the recipe's merged is no list of recipes")
    for part in parts:
        checked_recipe(part)
    return recipe


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _of_diffusers(
    tensors: dict[str, Tensor], header: dict[str, str], recipe: dict[str, Any]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    prefixes = {key.split(".", 1)[0] for key in tensors}
    if len(prefixes) != 1 or not prefixes <= set(DENOISERS):
        raise ValueError(
            f"its keys begin with {', '.join(sorted(prefixes)[:4])}, not with one of "
            f"{', '.join(DENOISERS)}"
        )
    (prefix,) = prefixes
    state = {key.split(".", 1)[1]: value for key, value in tensors.items()}
    metadata = parse_json_object(header.get(METADATA_NAME, "{}"), "the header")
    given = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    # One of a second denoiser looks like one of the first.
    own = recipe.get("component")
    return own if own in DENOISERS else prefix, state, _config(given, state)


def _of_peft(
    tensors: dict[str, Tensor], config: dict[str, Any], recipe: dict[str, Any]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {config.get('peft_type')!r}, not LORA")
    state = {key.removeprefix(PEFT_PREFIX): value for key, value in tensors.items()}
    is_unet = any(key.startswith(UNET_PARTS) for key in state)
    own = recipe.get("component")
    component = own if own in DENOISERS else "unet" if is_unet else "transformer"
    return component, state, _config(config, state)


def _config(given: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """What is said about the LoRA; unsaid, alpha is the rank, as diffusers has it.

    Raises:
        ValueError: if it is no plain LoRA, or is not of the types that it should be.
    """
    for name in CHANGES_MATHS:
        if given.get(name):
            raise ValueError(f"{name} is {given[name]!r}: only plain LoRA is read")
    ranks = {k.rsplit(".lora_", 1)[0]: v.shape[0] for k, v in state.items() if ".lora_A." in k}
    unsaid = "r" not in given
    most = max(ranks.values(), default=1)
    found = {
        "r": most if unsaid else given["r"],
        "lora_alpha": given.get("lora_alpha", most if unsaid else given["r"]),
        "target_modules": given.get("target_modules") or sorted(ranks),
        "rank_pattern": ranks if unsaid else given.get("rank_pattern") or {},
        "alpha_pattern": ranks if unsaid else given.get("alpha_pattern") or {},
    }
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(found[name], dict):
            raise ValueError(f"{name} is {found[name]!r:.80}, no mapping")
        for pattern, value in found[name].items():
            if not PATTERN.fullmatch(pattern) or not _is_positive(value):
                raise ValueError(f"{name} has {pattern!r:.80}: {value!r:.80}")
    for name in ("r", "lora_alpha"):
        if not _is_positive(found[name]):
            raise ValueError(f"{name} is {found[name]!r:.80}")
    return found


def _is_positive(value: Any) -> bool:
    """Whether it is a positive number that a float can hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < LARGEST


def _check(found: AdapterFile) -> None:
    """Every layer has both halves, of the rank that the metadata says, finite.

    Raises:
        ValueError: with what is wrong.
    """
    if not found.state:
        raise ValueError("it holds no weights")
    for key, value in found.state.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"unexpected key {key!r}")
        other = f"{match['module']}.lora_{'B' if match['half'] == 'A' else 'A'}.weight"
        if other not in found.state:
            raise ValueError(f"{key!r} is without {other!r}")
        if not value.is_floating_point() or value.ndim < 2 or 0 in value.shape:
            raise ValueError(f"{key!r} is {value.dtype} of shape {tuple(value.shape)}")
        if not bool(torch.isfinite(value.float()).all()):
            raise ValueError(f"{key!r} has values that are not finite")
    for module, (down, up) in found.modules.items():
        rank = by_pattern(found.config["rank_pattern"], module, found.config["r"])
        fits = down.shape[0] == up.shape[1] == rank and down.ndim == up.ndim
        if not fits or any(side != 1 for side in up.shape[2:]):
            raise ValueError(
                f"{module!r} is {tuple(down.shape)} and {tuple(up.shape)}, not of rank {rank}"
            )
