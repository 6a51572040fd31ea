"""A file that `export` wrote, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...utils.io import parse_json_object
from .header import RECIPE_KEY
from .layers import Layer

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


@dataclass(frozen=True)
class Exported:
    """What such a file holds.

    Args:
        path: of the file.
        layers: by name.
        header: its metadata.
        recipe: what trained it; empty if that is not known.
    """

    path: Path
    layers: dict[str, Layer]
    header: dict[str, str]
    recipe: dict[str, Any]


def read_exported(path: str | Path) -> Exported:
    """Read a LoRA in kohya's layout; nothing in it is executed.

    Raises:
        ValueError: if the file is none.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no safetensors file: {error}") from error
    layers = {}
    for name in [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]:
        down, up = tensors.pop(f"{name}{DOWN}"), tensors.pop(f"{name}{UP}", None)
        alpha = tensors.pop(f"{name}{ALPHA}", torch.tensor(float(down.shape[0])))
        if up is None or down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{str(path)!r} is no LoRA: the halves of {name!r} do not fit")
        layers[name] = Layer(down, up, float(alpha))
    if tensors or not layers:
        other = min(tensors, default="nothing")
        raise ValueError(f"{str(path)!r} is no LoRA in kohya's layout: it holds {other!r}")
    return Exported(path, layers, header, _recipe(header))


def _recipe(header: dict[str, str]) -> dict[str, Any]:
    try:
        return parse_json_object(header.get(RECIPE_KEY) or "{}", "the recipe")
    except ValueError:
        return {}
