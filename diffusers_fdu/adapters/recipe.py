"""What trained an adapter, as JSON that lies beside it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import diffusers
import peft
import torch

from ..utils.io import as_json
from ..utils.version import VERSION

RECIPE_NAME = "recipe.json"
EMBEDDED = "diffusers_fdu/emoji"
"""What recipes call the embedded model; it is not on the Hub."""


def make_recipe(
    pipe: Any, settings: tuple[Any, ...], pipeline_kwargs: dict[str, Any], **facts: Any
) -> dict[str, Any]:
    """Everything needed to train an adapter again, as JSON types.

    The fields of the settings' dataclasses come under "config", those of the last one,
    `PerformanceConfig`, under "performance"; `facts` is what else is known of the training.
    """
    *options, machine = settings
    config = {name: value for part in options for name, value in asdict(part).items()}
    recipe = {
        **facts,
        "config": config,
        "performance": asdict(machine),
        "pipeline_kwargs": pipeline_kwargs,
        "base_model": str(getattr(pipe, "name_or_path", None) or "") or None,
        "pipeline": type(pipe).__name__,
        "versions": versions(),
    }
    return as_json(recipe)


def versions() -> dict[str, str]:
    """Versions of this library and of those that the result depends on most."""
    libraries = {module.__name__: module.__version__ for module in (torch, diffusers, peft)}
    return {"diffusers_fdu": VERSION, **libraries}


def rename_base_models(value: Any, name_of: Callable[[Any], Any]) -> Any:
    """A recipe for others, whose base models have names in place of paths on this machine.

    The base models of the recipes within it, of what was merged or trained on, are renamed, too.
    """
    if isinstance(value, list):
        return [rename_base_models(item, name_of) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: name_of(item) if key == "base_model" else rename_base_models(item, name_of)
        for key, item in value.items()
    }
