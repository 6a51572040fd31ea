"""What trained an adapter, as JSON, and the folder that holds both."""

from __future__ import annotations

import json
import numbers
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch

RECIPE_NAME = "recipe.json"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def describe(
    pipe: Any, settings: tuple[Any, ...], pipeline_kwargs: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """Everything needed to train an adapter again, as JSON types.

    Args:
        pipe: what it was trained on.
        settings: dataclasses of options; their fields come under "config", those of
            `Performance` under "performance".
        pipeline_kwargs: of the recorded runs.
        **facts: what else is known of the training.
    """
    *options, machine = settings
    config = {name: value for part in options for name, value in asdict(part).items()}
    return as_json(
        {
            **facts,
            "config": config,
            "performance": asdict(machine),
            "pipeline_kwargs": pipeline_kwargs,
            "base_model": str(getattr(pipe, "name_or_path", None) or "") or None,
            "pipeline": type(pipe).__name__,
            "versions": versions(),
        }
    )


def versions() -> dict[str, str]:
    """Of this library and of those that the result depends on most."""
    from . import __version__

    return {
        "diffusers_fdu": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
    }


def write(recipe: dict[str, Any], folder: Path) -> None:
    """Write `recipe.json`, whole or not at all."""
    temporary = folder / f"{RECIPE_NAME}.tmp"
    temporary.write_text(json.dumps(recipe, indent=2) + "\n")
    temporary.replace(folder / RECIPE_NAME)


def public(value: Any, name_of: Callable[[Any], Any]) -> Any:
    """A recipe for others: base models by names, not by where they lay on this machine.

    Args:
        value: a recipe, or part of one.
        name_of: the name of a base model, of what the recipe has; those of the recipes in it,
            of what was merged or trained on, are replaced, too.
    """
    if isinstance(value, list):
        return [public(item, name_of) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: name_of(item) if key == "base_model" else public(item, name_of)
        for key, item in value.items()
    }


def writable_folder(directory: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        ValueError: if it cannot be made or written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return folder


def as_json(value: Any) -> Any:
    """A value as JSON types; what has none is written as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: as_json(asdict(value))}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # Where something is in memory says nothing about it.
    return value if isinstance(value, str | bool | None) else ADDRESS.sub("", repr(value))
