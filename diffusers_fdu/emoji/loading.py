"""Loading the embedded model from package data; nothing is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from .classifier import EmojiJudge, JudgeNetwork

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights: a diffusers pipeline, and `judge.safetensors`."""

CLIP_WEIGHTS = Path(__file__).parent / "clip"
"""Folder of the tiny CLIP."""

ORACLE = "dog"
"""The concept that the oracle never saw."""

ORACLE_WEIGHTS = Path(__file__).parent / "oracle" / "model.safetensors"
"""File of the oracle's denoiser and text encoder, in 8 bits."""

PARTS: dict[str, tuple[Any, str]] = {
    "unet": (UNet2DConditionModel, "torch_dtype"),
    "vae": (AutoencoderTiny, "torch_dtype"),
    "text_encoder": (CLIPTextModel, "dtype"),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the bar that transformers draws while it loads weights."""
    is_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_on:
            transformers_logging.enable_progress_bar()


def load_emoji_pipeline(
    folder: Path | str = WEIGHTS, torch_dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load the embedded text-to-image pipeline: 32 concepts in 4 styles, images of 64x64.

    It was made for a guidance scale of 3 to 5 and 25 steps.

    Args:
        folder: folder of the weights, as `examples/train_emoji.py` writes it.
        torch_dtype: dtype of the weights in memory; they are stored in float16.

    Example:
        >>> from diffusers_fdu.emoji import caption, load_emoji_pipeline
        >>> pipe = load_emoji_pipeline()
        >>> pipe(caption("dog"), num_inference_steps=2, guidance_scale=4.0).images[0].size
        (64, 64)
    """
    # Part by part: diffusers' own from_pretrained warns that the autoencoder is a tiny one.
    modules: dict[str, Any] = {}
    with _quiet():
        for name, (kind, dtype_name) in PARTS.items():
            modules[name] = kind.from_pretrained(
                Path(folder) / name, local_files_only=True, **{dtype_name: torch_dtype}
            )
    pipe: Any = StableDiffusionPipeline(
        **modules,
        tokenizer=CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(Path(folder) / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.register_to_config(_name_or_path="diffusers_fdu/emoji")
    return pipe


def load_emoji_oracle(
    file: Path | str = ORACLE_WEIGHTS, torch_dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Load the embedded pipeline as if it had never seen a dog: the floor of every attack.

    It was trained from nothing on the same art without dogs, by `examples/train_emoji.py --without
    dog`, for fewer steps than the embedded model. Autoencoder and tokenizer are the same.

    Args:
        file: file of the oracle's weights.
        torch_dtype: dtype of all models.

    Example:
        >>> from diffusers_fdu.emoji import load_emoji_oracle
        >>> load_emoji_oracle().name_or_path
        'diffusers_fdu/emoji-oracle'
    """
    pipe: Any = load_emoji_pipeline(torch_dtype=torch_dtype)
    tensors = load_file(file)
    for part in ("unet", "text_encoder"):
        module = getattr(pipe, part)
        state = {name: from_8_bits(tensors, f"{part}.{name}") for name in module.state_dict()}
        module.load_state_dict(state)
    pipe.register_to_config(_name_or_path="diffusers_fdu/emoji-oracle")
    return pipe


def from_8_bits(tensors: dict[str, Tensor], name: str) -> Tensor:
    """A weight in float32 from the integers and the scale of each output channel that store it."""
    scale = tensors.get(f"{name}.scale")
    value = tensors[name].float()
    return value if scale is None else value * scale.float().reshape(-1, *[1] * (value.dim() - 1))


def load_emoji_clip() -> tuple[CLIPModel, CLIPTokenizer, Any]:
    """Load a tiny CLIP of the embedded model's pictures: model, tokenizer and image processor.

    It was trained on the same art and captions as the embedded model, by
    `examples/train_emoji_clip.py`, and on nothing that the model drew.

    Example:
        >>> from diffusers_fdu.emoji import caption, load_emoji_clip
        >>> model, tokenizer, processor = load_emoji_clip()
        >>> tokens = tokenizer([caption("dog")], return_tensors="pt")
        >>> features = model.get_text_features(**tokens)
    """
    from transformers import CLIPImageProcessor  # warns, where there is no torchvision

    with _quiet():
        model: Any = CLIPModel.from_pretrained(
            CLIP_WEIGHTS, local_files_only=True, dtype=torch.float32
        )
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    return model.eval(), tokenizer, CLIPImageProcessor.from_pretrained(CLIP_WEIGHTS)


def load_emoji_judge(folder: Path | str = WEIGHTS) -> EmojiJudge:
    """Load the classifier that says which concept, in which style, a picture shows.

    Args:
        folder: folder of the weights, as `examples/train_emoji.py` writes it.

    Example:
        >>> from diffusers_fdu.emoji import load_emoji_judge
        >>> [(concept, style)] = load_emoji_judge()(pipe("a dog emoji").images)
    """
    network = JudgeNetwork()
    network.load_state_dict(load_file(Path(folder) / "judge.safetensors"))
    return EmojiJudge(network)
