"""Loading the embedded model from package data; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from .judge import EmojiJudge, JudgeNetwork

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights: a diffusers pipeline, and `judge.safetensors`."""


def load_emoji_pipeline(
    folder: Path | str = WEIGHTS, torch_dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """The embedded text-to-image pipeline: 32 concepts in 4 styles, images of 64x64.

    It was made for guidance_scale 3 to 5 and 25 steps.

    Args:
        folder: another folder that `examples/train_emoji.py` wrote.
        torch_dtype: dtype of the weights in memory; they are stored in float16.
    """
    return StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch_dtype, local_files_only=True
    )


def load_emoji_judge(folder: Path | str = WEIGHTS) -> EmojiJudge:
    """The classifier that says which concept, in which style, a picture shows.

    Args:
        folder: another folder that `examples/train_emoji.py` wrote.
    """
    network = JudgeNetwork()
    tensors = load_file(Path(folder) / "judge.safetensors")
    network.load_state_dict(tensors)
    return EmojiJudge(network)
