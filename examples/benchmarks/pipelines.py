"""Whole pipelines of published sizes with random weights, and with the embedded model's tokenizer.

What they draw means nothing; what it costs to record them, to train on them and to draw with them
does not depend on the weights. The tokenizer knows the embedded model's words alone, so the text
encoders' tables of embeddings have a row for each of these and no more.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_fdu.emoji.loading import WEIGHTS

from .denoisers import SIZES, TOKENS, Size, autoencoder, build

NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def tokenizer() -> CLIPTokenizer:
    """The embedded model's, which pads to 77 tokens here."""
    return CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", model_max_length=TOKENS)


def text_encoder(kind: type, config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A CLIP text encoder that reads what `tokenizer` writes."""
    words = tokenizer()
    fitted = {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return build(kind, config | fitted, device, dtype)


def sd1_pipeline(device: str, dtype: torch.dtype, tiny: bool = False) -> StableDiffusionPipeline:
    """Stable Diffusion 1 at 512 x 512, its models made on their device in their dtype.

    Args:
        device: where the models are made.
        dtype: of their weights.
        tiny: the same parts in the smallest sizes, for pictures of 64 x 64.
    """
    size = SIZES["tiny" if tiny else "sd1"]
    pipe = StableDiffusionPipeline(
        vae=_autoencoder(size, device, dtype),
        text_encoder=text_encoder(CLIPTextModel, size.texts[0], device, dtype),
        tokenizer=tokenizer(),
        unet=build(UNet2DConditionModel, size.unet or {}, device, dtype),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **NOISE),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    return _named(pipe, "sd1")


def sdxl_pipeline(
    device: str, dtype: torch.dtype, tiny: bool = False
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL at 1024 x 1024; the arguments are those of `sd1_pipeline`."""
    size = SIZES["tiny_xl" if tiny else "sdxl"]
    pipe = StableDiffusionXLPipeline(
        vae=_autoencoder(size, device, dtype),
        text_encoder=text_encoder(CLIPTextModel, size.texts[0], device, dtype),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, size.texts[1], device, dtype),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=build(UNet2DConditionModel, size.unet or {}, device, dtype),
        scheduler=EulerDiscreteScheduler(**NOISE),  # type: ignore[arg-type]
        add_watermarker=False,
    )
    return _named(pipe, "sdxl")


def _autoencoder(size: Size, device: str, dtype: torch.dtype) -> AutoencoderKL:
    return autoencoder(size, device, dtype)  # type: ignore[return-value]


def _named(pipe: Any, name: str) -> Any:
    """A pipe that the recipe can name, and that draws no bars."""
    pipe.register_to_config(_name_or_path=f"random/{name}")
    pipe.set_progress_bar_config(disable=True)
    return pipe
