"""Adapters read only if everything about them is as it should be; nothing is executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..denoiser import DENOISERS
from ..recipe import RECIPE_NAME
from .adapter import (
    PEFT_CONFIG_NAME,
    PEFT_PREFIX,
    PEFT_WEIGHTS_NAME,
    WEIGHTS_NAME,
    AdapterFile,
    Format,
    by_pattern,
)

METADATA_NAME = "lora_adapter_metadata"  # diffusers' own, in the header

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
KEY = re.compile(r"(?P<module>\w+(\.\w+)*)\.lora_(?P<half>[AB])\.weight")
CONFIG = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
CHANGES_MATHS = ("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "modules_to_save")
MAX_JSON = 64 * 2**20  # bytes; a recipe has a few thousand


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
    recipe_path = folder / RECIPE_NAME
    recipe = _json(recipe_path) if recipe_path.exists() else {}
    try:
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
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{str(path)!r} has more than {MAX_JSON} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object")
    return content


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
    metadata = json.loads(header.get(METADATA_NAME, "{}"))
    given = {key.removeprefix(f"{prefix}."): value for key, value in metadata.items()}
    # One of a second denoiser looks like one of the first.
    own = recipe.get("component")
    return own if own in DENOISERS else prefix, state, _config(given, state)


def _of_peft(
    tensors: dict[str, Tensor], config: dict[str, Any], recipe: dict[str, Any]
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {config.get('peft_type')!r}, not LORA")
    for name in CHANGES_MATHS:
        if config.get(name):
            raise ValueError(f"{name} is {config[name]!r}: only plain LoRA is read")
    state = {key.removeprefix(PEFT_PREFIX): value for key, value in tensors.items()}
    own = recipe.get("component")
    return own if own in DENOISERS else "transformer", state, _config(config, state)


def _config(given: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """What is said about the LoRA; unsaid, alpha is the rank, as diffusers has it."""
    ranks = {k.rsplit(".lora_", 1)[0]: v.shape[0] for k, v in state.items() if ".lora_A." in k}
    r = given.get("r") or (max(ranks.values()) if ranks else 1)
    unsaid = "r" not in given
    return {
        "r": r,
        "lora_alpha": given.get("lora_alpha") or r,
        "target_modules": given.get("target_modules") or sorted(ranks),
        "rank_pattern": dict(given.get("rank_pattern") or (ranks if unsaid else {})),
        "alpha_pattern": dict(given.get("alpha_pattern") or (ranks if unsaid else {})),
    }


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
        if not value.is_floating_point() or value.ndim < 2:
            raise ValueError(f"{key!r} is {value.dtype} of shape {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key!r} has values that are not finite")
    for module, (down, up) in found.modules.items():
        rank = by_pattern(found.config["rank_pattern"], module, found.config["r"])
        if not down.shape[0] == up.shape[1] == rank:
            raise ValueError(
                f"{module!r} is {tuple(down.shape)} and {tuple(up.shape)}, not of rank {rank}"
            )
        alpha = found.alpha(module)
        if not math.isfinite(alpha) or alpha <= 0:
            raise ValueError(f"alpha of {module!r} is {alpha}")
