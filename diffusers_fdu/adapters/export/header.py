"""What a file says of itself to other programs: kohya's `ss_…` and Stability's `modelspec.…`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..adapter_file import AdapterFile, Layer
from ..recipe import rename_base_models
from ..summary import concept_summary, concepts, mapping

FAMILIES = ("sd", "sdxl", "flux", "sd3")
WORKS = "Stable Diffusion 1.x and 2.x (sd), SDXL (sdxl), FLUX.1 (flux), Stable Diffusion 3 (sd3)"
PIPELINES: tuple[tuple[str, str | None], ...] = (
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sd3"),
    ("StableDiffusion", "sd"),
    ("LatentConsistencyModel", "sd"),
    ("Flux2", None),
    ("Flux", "flux"),
)
"""How the names of their pipelines begin; the first that fits counts."""
WIDTHS: dict[int | None, str] = {768: "sd", 1024: "sd", 2048: "sdxl"}
"""Families of UNets by the width of the text that cross-attention reads."""

RECIPE_KEY = "diffusers_fdu.recipe"
IMPLEMENTATIONS = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux": "https://github.com/black-forest-labs/flux",
}
"""Where the layers' names are from; others are diffusers' own."""
VERSIONS = (
    ("sd", "", "sd_v1", "stable-diffusion-v1"),
    ("sd2", "", "sd_v2", "stable-diffusion-v2-512"),
    ("sd2 of v", "", "sd_v2_v", "stable-diffusion-v2-768-v"),
    ("sdxl", "", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    ("flux", "schnell", "flux1", "flux-1-schnell"),
    ("flux", "dev", "flux1", "flux-1-dev"),
    ("flux", "", "flux1", "flux-1"),
    ("sd3", "3.5-large", "sd3", "stable-diffusion-3-5-large"),
    ("sd3", "3.5-medium", "sd3", "stable-diffusion-3-5-medium"),
    ("sd3", "3-medium", "sd3", "stable-diffusion-3-medium"),
    ("sd3", "", "sd3", "stable-diffusion-3"),
)
"""A model, a part of the base model's name, and the version and architecture that they tell."""


def family_of(adapter_file: AdapterFile, family: str | None = None) -> str:
    """The family of an adapter, as it is given, or by the recipe, or by the layers' sizes."""
    folder, component = repr(str(adapter_file.folder)), adapter_file.component
    pipeline, choices = adapter_file.recipe.get("pipeline"), ", ".join(FAMILIES)
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}: choose {choices}")
    elif pipeline is not None:
        family = next((name for start, name in PIPELINES if pipeline.startswith(start)), None)
        if family is None:
            raise ValueError(f"{folder} is for {pipeline!r}: exported are adapters for {WORKS}")
    else:
        family = WIDTHS.get(text_width(adapter_file)) if component == "unet" else None
        if family is None:
            raise ValueError(f"{folder} has no recipe: pass family, one of {choices}")
    expected = "unet" if family in ("sd", "sdxl") else "transformer"
    if component != expected:
        message = f"{folder} is for a {component}, and {family} has a {expected}"
        raise ValueError(f"{message}: exported are adapters for {WORKS}")
    return family


def text_width(adapter_file: AdapterFile) -> int | None:
    """Width of the text that cross-attention reads; None if no such layer is adapted."""
    for name, layer in adapter_file.layers.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return layer.down.shape[1]
    return None


def header(
    adapter_file: AdapterFile,
    family: str,
    layers: Mapping[str, Layer],
    output_name: str,
    digest: str,
    title: str | None,
) -> dict[str, str]:
    """The metadata: text alone, and the same for the same adapter.

    There is no date, which a recipe does not have, and no resolution unless the recipe has one.
    `layers` are those that are written, and `digest` is the SHA-256 of their tensors as they lie
    in the file.
    """
    recipe = rename_base_models(adapter_file.recipe, base_model_name)
    width, kwargs = text_width(adapter_file), mapping(recipe.get("pipeline_kwargs"))
    sizes = [kwargs[side] for side in ("width", "height") if isinstance(kwargs.get(side), int)]
    values = {
        "format": "pt",
        "ss_network_module": "networks.lora" + (f"_{family}" if family in ("flux", "sd3") else ""),
        "ss_network_dim": _common(layer.rank for layer in layers.values()),
        "ss_network_alpha": _common(layer.alpha for layer in layers.values()),
        "ss_output_name": output_name,
        "ss_sd_model_name": recipe.get("base_model") or "",
        "sshs_model_hash": digest,
        **_versions(family, (recipe.get("base_model") or "").lower(), width),
        "modelspec.sai_model_spec": "1.0.1",  # see https://github.com/Stability-AI/ModelSpec
        "modelspec.title": title or str(recipe.get("adapter_name") or output_name),
        "modelspec.description": _description(recipe),
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.resolution": "x".join(map(str, sizes)) if len(sizes) == 2 else "",
        "modelspec.tags": "concept unlearning",
        RECIPE_KEY: json.dumps(recipe, sort_keys=True) if recipe else "",
    }
    # Half a surrogate pair, which JSON may hold, cannot be written.
    return {key: value.encode(errors="replace").decode() for key, value in values.items() if value}


def base_model_name(name: Any) -> str | None:
    """Name of a model that an adapter was trained on, without the folders that it lay in."""
    if not isinstance(name, str):
        return None
    name = name.replace("\\", "/").rstrip("/")
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or ":" in name
    return name.rsplit("/", 1)[-1] if is_path else name


def _versions(family: str, base_model: str, width: int | None) -> dict[str, str]:
    """The base model, as `ss_…` and `modelspec.…` have it."""
    is_v2 = family == "sd" and width == 1024
    # 2.0 and 2.1 without "base" predict v, and draw 768 pixels.
    is_v = "stable-diffusion-2" in base_model and "base" not in base_model
    model = ("sd2 of v" if is_v else "sd2") if is_v2 else family
    version, architecture = next(
        names for name, part, *names in VERSIONS if name == model and part in base_model
    )
    return {
        "ss_base_model_version": version,
        "ss_v2": str(is_v2),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": IMPLEMENTATIONS.get(family, "diffusers"),
    }


def _common(values: Iterable[float]) -> str:
    """The value that all have, or else "Dynamic", as kohya's tools say it."""
    texts = {f"{value:g}" for value in values}
    return texts.pop() if len(texts) == 1 else "Dynamic"


def _description(recipe: Mapping[str, Any]) -> str:
    """What an adapter unlearns, in words."""
    summaries = [concept_summary(concept) for concept in concepts(recipe)]
    if not summaries:
        return "An adapter made by diffusers-fdu; it has no trigger word."
    unlearned = ", ".join(
        f"the {c.kind or 'concept'} {c.target!r} (in its place: {c.anchor})" for c in summaries
    )
    return (
        f"Unlearns {unlearned}. It has no trigger word: active at strength 1 the model has "
        "forgotten, at 0 it is as it was."
    )
