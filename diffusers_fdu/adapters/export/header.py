"""What a file says of itself to other programs: kohya's `ss_…` and Stability's `modelspec.…`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..adapter_file import AdapterFile
from ..recipe import public
from .families import NETWORKS, Family, base_name, versions
from .layers import Layer

RECIPE_KEY = "diffusers_fdu.recipe"
SPEC = "1.0.1"  # of https://github.com/Stability-AI/ModelSpec
MIXED = "Dynamic"  # as kohya's tools say that layers differ


def header(
    found: AdapterFile,
    family: Family,
    layers: Mapping[str, Layer],
    output_name: str,
    digest: str,
    title: str | None,
) -> dict[str, str]:
    """The metadata: text alone, and the same for the same adapter.

    There is no date, which a recipe does not have, and no resolution unless the recipe has one.
    Of a base model that was loaded from a path, there is the last part of it alone.

    Args:
        found: the adapter.
        family: what it is for.
        layers: as they are written.
        output_name: of the file.
        digest: SHA-256 of all tensors as they lie in the file.
        title: None: the adapter's name.
    """
    recipe = public(found.recipe, base_name)
    name = recipe.get("adapter_name") or output_name
    values = {
        "format": "pt",
        "ss_network_module": NETWORKS[family],
        "ss_network_dim": _one(layer.rank for layer in layers.values()),
        "ss_network_alpha": _one(layer.alpha for layer in layers.values()),
        "ss_output_name": output_name,
        "ss_sd_model_name": recipe.get("base_model") or "",
        "sshs_model_hash": digest,
        **versions(family, found),
        "modelspec.sai_model_spec": SPEC,
        "modelspec.title": title or str(name),
        "modelspec.description": description(recipe),
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.resolution": _resolution(recipe),
        "modelspec.tags": "concept unlearning",
        RECIPE_KEY: json.dumps(recipe, sort_keys=True) if recipe else "",
    }
    # Half a surrogate pair, which JSON may hold, cannot be written.
    return {key: value.encode(errors="replace").decode() for key, value in values.items() if value}


def _one(values: Any) -> str:
    """What all have; a whole number without a fraction."""
    found = {f"{value:g}" for value in values}
    return found.pop() if len(found) == 1 else MIXED


def _resolution(recipe: Mapping[str, Any]) -> str:
    kwargs = recipe.get("pipeline_kwargs")
    sizes = [kwargs.get(side) for side in ("width", "height")] if isinstance(kwargs, dict) else []
    return "x".join(map(str, sizes)) if sizes and all(isinstance(s, int) for s in sizes) else ""


def description(recipe: Mapping[str, Any]) -> str:
    """What an adapter unlearns, in words."""
    told = []
    concepts = recipe.get("concepts")
    for concept in concepts if isinstance(concepts, list) else []:
        if not isinstance(concept, dict):
            continue
        anchor = concept.get("anchor")
        instead = "what the empty prompt gives" if anchor is None else f"{anchor!r}"
        if isinstance(anchor, dict):
            instead = "what guidance away from it gives"
        kind = concept.get("kind") or "concept"
        told.append(f"the {kind} {concept.get('target')!r} ({instead} in its place)")
    if not told:
        return "An adapter made by diffusers-fdu; it has no trigger word."
    return (
        f"Unlearns {', '.join(told)}. It has no trigger word: active at strength 1 the model has "
        "forgotten, at 0 it is as it was."
    )
