"""Adapters read only if everything about them is as it should be; nothing is executed."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..pipelines.denoiser import DENOISERS
from ..utils.io import parse_json_object, read_json
from .adapter_file import FILE_NAMES, PEFT_CONFIG_NAME, PEFT_PREFIX, AdapterFile, by_pattern
from .recipe import RECIPE_NAME

METADATA_NAME = "lora_adapter_metadata"  # diffusers' own, in the header
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
KEY = re.compile(r"(?P<layer>\w+(\.\w+)*)\.lora_(?P<half>[AB])\.weight")
CHANGES_MATHS = (
    *("use_dora", "use_rslora", "lora_bias", "fan_in_fan_out"),
    *("modules_to_save", "target_parameters", "layer_replication"),
)
PATTERN = re.compile(r"\^?\w[\w.]*\$?")  # of the patterns in the metadata: names alone
UNET_PARTS = ("down_blocks.", "mid_block.", "up_blocks.")


def read_adapter(directory: str | Path) -> AdapterFile:
    """Read the adapter of a folder, in either format; nothing in it is executed.

    Raises:
        ValueError: with the reason, if the folder has no adapter in safetensors, links to files
            outside, weights that are no LoRA of a denoiser, that do not fit each other or their
            metadata, or that are not finite.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: pass one that has an adapter")
    formats = [f for f, names in FILE_NAMES.items() if all((folder / n).exists() for n in names)]
    if not formats:
        raise ValueError(f"{str(folder)!r} {without_weights(p.name for p in folder.iterdir())}")
    format = formats[0]
    path = folder / FILE_NAMES[format][-1]
    for name in (*FILE_NAMES[format], RECIPE_NAME):
        check_inside(folder / name, folder)
    try:
        recipe = read_json(folder / RECIPE_NAME) if (folder / RECIPE_NAME).exists() else {}
        _check_recipe(recipe)
        tensors, header = read_safetensors(path)
        if format == "diffusers":
            component, state = _split_prefix(tensors)
            named = parse_json_object(header.get(METADATA_NAME, "{}"), "the header")
            metadata = {key.removeprefix(f"{component}."): value for key, value in named.items()}
        else:
            state = {key.removeprefix(PEFT_PREFIX): value for key, value in tensors.items()}
            is_unet = any(key.startswith(UNET_PARTS) for key in state)
            component = "unet" if is_unet else "transformer"
            metadata = read_json(folder / PEFT_CONFIG_NAME)
            if metadata.get("peft_type") != "LORA":
                raise ValueError(f"peft_type is {metadata.get('peft_type')!r}, not LORA")
        # The weights of a second denoiser look like those of the first; the recipe tells them.
        if recipe.get("component") in DENOISERS:
            component = recipe["component"]
        config = _checked_config(metadata, state)
        adapter_file = AdapterFile(folder, format, component, state, config, recipe)
        _check_weights(adapter_file)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no adapter to be trusted: {error}") from error
    return adapter_file


def without_weights(file_names: Iterable[str]) -> str:
    """Why there is no adapter among these files, as the end of a sentence."""
    pickles = sorted(name for name in file_names if Path(name).suffix.lower() in PICKLES)
    if pickles:
        return f"holds {pickles[0]!r}, a pickle, which could run any code: pass safetensors"
    return "holds neither " + " nor ".join(" with ".join(names) for names in FILE_NAMES.values())


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file that links out of the folder; the Hub's cache links to its own blobs."""
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{str(path)!r} is a link that leaves the folder: refused")


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Refuse a recipe if what is read of it has other types than it should have."""
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
        _check_recipe(part)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the metadata in its header.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no safetensors file: {error}") from error


def _split_prefix(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The denoiser that all of diffusers' keys begin with, and the weights by the rest of them."""
    prefixes = {key.split(".", 1)[0] for key in tensors}
    if len(prefixes) != 1 or not prefixes <= set(DENOISERS):
        shown, expected = ", ".join(sorted(prefixes)[:4]), ", ".join(DENOISERS)
        raise ValueError(f"its keys begin with {shown}, not with one of {expected}")
    return prefixes.pop(), {key.split(".", 1)[1]: value for key, value in tensors.items()}


def _checked_config(metadata: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """An `AdapterFile.config`; without metadata alpha is the rank, as diffusers has it."""
    for name in CHANGES_MATHS:
        if metadata.get(name):
            raise ValueError(f"{name} is {metadata[name]!r}: only plain LoRA is read")
    ranks = {k.rsplit(".lora_", 1)[0]: v.shape[0] for k, v in state.items() if ".lora_A." in k}
    has_rank = "r" in metadata
    rank = metadata["r"] if has_rank else max(ranks.values(), default=1)
    config = {
        "r": rank,
        "lora_alpha": metadata.get("lora_alpha", rank),
        "target_modules": metadata.get("target_modules") or sorted(ranks),
        "rank_pattern": (metadata.get("rank_pattern") or {}) if has_rank else ranks,
        "alpha_pattern": (metadata.get("alpha_pattern") or {}) if has_rank else ranks,
    }
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config[name], dict):
            raise ValueError(f"{name} is {config[name]!r:.80}, no mapping")
        for pattern, value in config[name].items():
            if not PATTERN.fullmatch(pattern) or not _is_positive(value):
                raise ValueError(f"{name} has {pattern!r:.80}: {value!r:.80}")
    for name in ("r", "lora_alpha"):
        if not _is_positive(config[name]):
            raise ValueError(f"{name} is {config[name]!r:.80}")
    return config


def _is_positive(value: Any) -> bool:
    """Whether this is a positive number, of a size that a rank or an alpha may have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < 1e9


def _check_weights(adapter_file: AdapterFile) -> None:
    """Refuse weights unless every layer has both halves, finite, of the rank that config says."""
    state, config = adapter_file.state, adapter_file.config
    if not state:
        raise ValueError("it holds no weights")
    for key, value in state.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"unexpected key {key!r}")
        other_half = f"{match['layer']}.lora_{'B' if match['half'] == 'A' else 'A'}.weight"
        if other_half not in state:
            raise ValueError(f"{key!r} is without {other_half!r}")
        if not value.is_floating_point() or value.ndim < 2 or 0 in value.shape:
            raise ValueError(f"{key!r} is {value.dtype} of shape {tuple(value.shape)}")
        if not bool(torch.isfinite(value.float()).all()):
            raise ValueError(f"{key!r} has values that are not finite")
    for name, (down, up, _) in adapter_file.layers.items():
        rank = by_pattern(config["rank_pattern"], name, config["r"])
        fits = down.shape[0] == up.shape[1] == rank and down.ndim == up.ndim
        if not fits or any(side != 1 for side in up.shape[2:]):
            raise ValueError(
                f"{name!r} is {tuple(down.shape)} and {tuple(up.shape)}, not of rank {rank}"
            )
