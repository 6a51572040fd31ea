"""Random pictures, and a tiny CLIP with random weights."""

from __future__ import annotations

import numpy as np
import torch
from conftest import tiny_tokenizer
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from diffusers_fdu.evaluation.metrics.clip import ClipScorer


def pictures(count: int, seed: int = 0, size: int = 16) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        for _ in range(count)
    ]


class Processor:
    """Pixels in [0, 1], 16x16."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        arrays = [np.asarray(image.resize((16, 16)), dtype=np.float32) / 255 for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)}


def tiny_scorer() -> ClipScorer:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**shared, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    text["eos_token_id"] = tokenizer.eos_token_id
    vision = {**shared, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return ClipScorer(CLIPModel(config), tokenizer, Processor(), "tiny")
