"""What trained an adapter, as JSON, and the folder that holds both."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch


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
    from . import __version__

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
            "versions": {
                "diffusers_fdu": __version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "peft": peft.__version__,
            },
        }
    )


def write(recipe: dict[str, Any], folder: Path) -> None:
    """Write `recipe.json`, whole or not at all."""
    temporary = folder / "recipe.json.tmp"
    temporary.write_text(json.dumps(recipe, indent=2) + "\n")
    temporary.replace(folder / "recipe.json")


def writable_folder(directory: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        ValueError: if it cannot be made or written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".fdu-write-test"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may try the folder too
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
    return value if isinstance(value, str | bool | None) else repr(value)
