"""Which naming of other programs an adapter's layers get, by the base model that it is for."""

from typing import Literal, get_args

from ..adapter_file import AdapterFile

Family = Literal["sd", "sdxl", "flux", "sd3"]

WORKS = "Stable Diffusion 1.x and 2.x (sd), SDXL (sdxl), FLUX.1 (flux), Stable Diffusion 3 (sd3)"

PIPELINES: tuple[tuple[str, Family | None], ...] = (
    ("StableDiffusionXL", "sdxl"),
    ("StableDiffusion3", "sd3"),
    ("StableDiffusion", "sd"),
    ("LatentConsistencyModel", "sd"),
    ("Flux2", None),
    ("Flux", "flux"),
)
"""How the names of their pipelines begin; the first that fits counts."""

WIDTHS: dict[int | None, Family] = {768: "sd", 1024: "sd", 2048: "sdxl"}
"""Families of UNets by the width of the text that cross-attention reads."""


def family_of(adapter_file: AdapterFile, family: str | None = None) -> Family:
    """The family of an adapter, as it is given, or by the recipe, or by the layers' sizes."""
    folder, component = repr(str(adapter_file.folder)), adapter_file.component
    pipeline = adapter_file.recipe.get("pipeline")
    choices = ", ".join(get_args(Family))
    result: Family | None
    if family is not None:
        result = next((name for name in get_args(Family) if name == family), None)
        if result is None:
            raise ValueError(f"unknown family {family!r}: choose {choices}")
    elif isinstance(pipeline, str):
        result = next((name for start, name in PIPELINES if pipeline.startswith(start)), None)
        if result is None:
            raise ValueError(f"{folder} is for {pipeline!r}: exported are adapters for {WORKS}")
    else:
        result = WIDTHS.get(text_width(adapter_file)) if component == "unet" else None
        if result is None:
            raise ValueError(f"{folder} has no recipe: pass family, one of {choices}")
    expected = "unet" if result in ("sd", "sdxl") else "transformer"
    if component != expected:
        raise ValueError(f"{folder} is for a {component}, and {result} has a {expected}")
    return result


def text_width(adapter_file: AdapterFile) -> int | None:
    """Width of the text that cross-attention reads; None if no such layer is adapted."""
    for name, layer in adapter_file.layers.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return layer.down.shape[1]
    return None
