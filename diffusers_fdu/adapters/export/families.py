"""What other programs must know of a base model, and which one an adapter is for."""

from __future__ import annotations

from typing import Any, Literal, get_args

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

WIDTHS: dict[int, Family] = {
    768: "sd",
    1024: "sd",
    2048: "sdxl",
}  # of the text, by cross-attention

NETWORKS: dict[Family, str] = {
    "sd": "networks.lora",
    "sdxl": "networks.lora",
    "flux": "networks.lora_flux",
    "sd3": "networks.lora_sd3",
}
IMPLEMENTATIONS: dict[Family, str] = {
    "sd": "diffusers",
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux": "https://github.com/black-forest-labs/flux",
    "sd3": "diffusers",
}
VARIANTS = {
    "flux": (("schnell", "flux-1-schnell"), ("dev", "flux-1-dev"), ("", "flux-1")),
    "sd3": (
        ("3.5-large", "stable-diffusion-3-5-large"),
        ("3.5-medium", "stable-diffusion-3-5-medium"),
        ("3-medium", "stable-diffusion-3-medium"),
        ("", "stable-diffusion-3"),
    ),
}
"""Parts of the base model's name, and the architecture that they tell."""


def family_of(found: AdapterFile, wanted: str | None = None) -> Family:
    """Which naming an adapter's layers get.

    Args:
        found: the adapter.
        wanted: for an adapter whose recipe does not name the pipeline; None: see there.

    Raises:
        ValueError: if it is for none of the models that work, or that cannot be told.
    """
    pipeline = found.recipe.get("pipeline")
    if wanted is not None:
        family = next((name for name in get_args(Family) if name == wanted), None)
        if family is None:
            raise ValueError(f"unknown family {wanted!r}: choose {', '.join(get_args(Family))}")
    elif isinstance(pipeline, str):
        family = next((f for start, f in PIPELINES if pipeline.startswith(start)), None)
        if family is None:
            raise ValueError(
                f"{str(found.folder)!r} is for {pipeline!r}, which has no kohya naming that other "
                f"programs agree on: exported are adapters for {WORKS}"
            )
    else:
        family = _by_width(found)
    component = "unet" if family in ("sd", "sdxl") else "transformer"
    if found.component != component:
        raise ValueError(
            f"{str(found.folder)!r} is for a {found.component}, and {family} has a {component}: "
            f"exported are adapters for {WORKS}"
        )
    return family


def _by_width(found: AdapterFile) -> Family:
    width = text_width(found)
    if found.component == "unet" and width in WIDTHS:
        return WIDTHS[width]
    raise ValueError(
        f"{str(found.folder)!r} has no recipe that says what it is for: pass family, one of "
        f"{', '.join(get_args(Family))}"
    )


def text_width(found: AdapterFile) -> int | None:
    """Numbers of a token that cross-attention reads; None if no such layer is adapted."""
    for name, (down, _) in found.modules.items():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            return down.shape[1]
    return None


def base_name(name: Any) -> str | None:
    """Name of a model that an adapter was trained on; without the folders that it lay in."""
    if not isinstance(name, str):
        return None
    name = name.replace("\\", "/").rstrip("/")
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or ":" in name
    return name.rsplit("/", 1)[-1] if is_path else name


def versions(family: Family, found: AdapterFile) -> dict[str, str]:
    """The base model, as `ss_…` and `modelspec.…` have it."""
    name = (base_name(found.recipe.get("base_model")) or "").lower()
    is_v2 = family == "sd" and text_width(found) == 1024
    if family == "sd" and is_v2:
        # 2.0 and 2.1 without "base" predict v, and draw 768 pixels.
        is_v = "stable-diffusion-2" in name and "base" not in name
        version = "sd_v2_v" if is_v else "sd_v2"
        architecture = "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"
    elif family == "sd":
        version, architecture = "sd_v1", "stable-diffusion-v1"
    elif family == "sdxl":
        version, architecture = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    else:
        version = {"flux": "flux1", "sd3": "sd3"}[family]
        architecture = next(a for part, a in VARIANTS[family] if part in name)
    return {
        "ss_base_model_version": version,
        "ss_v2": str(is_v2),
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": IMPLEMENTATIONS[family],
    }
