"""What trained an adapter, as JSON, and the folder that holds both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch

from ..utils.io import as_json, write_json
from ..utils.version import VERSION

RECIPE_NAME = "recipe.json"


def describe(
    pipe: Any, settings: tuple[Any, ...], pipeline_kwargs: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """Everything needed to train an adapter again, as JSON types.

    Args:
        pipe: what it was trained on.
        settings: dataclasses of options; their fields come under "config", those of
            `PerformanceConfig` under "performance".
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
    return {
        "diffusers_fdu": VERSION,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
    }


def write(recipe: dict[str, Any], folder: Path) -> None:
    """Write `recipe.json`, whole or not at all."""
    write_json(folder / RECIPE_NAME, recipe)


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
