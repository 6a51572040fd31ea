"""Adapters with random weights, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_pipe
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_fdu.adapters.loading import lora_metadata
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter

PARTS = {"dog": (2, ["attn2.to_k"]), "cat": (3, ["attn2.to_k", "attn2.to_v"])}


def made(
    folder: Path, seed: int, rank: int, modules: Any, std: float = 2.0, **config: Any
) -> Path:
    """Write an adapter of the tiny pipe, strong enough to be seen; alpha is twice the rank."""
    pipe = build_tiny_pipe()
    config = {"r": rank, "lora_alpha": 2 * rank, "target_modules": modules, **config}
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(**config, init_lora_weights=False), "made")
    for key, value in pipe.unet.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=2.0)
    state = get_peft_model_state_dict(pipe.unet, adapter_name="made")
    folder.mkdir(parents=True)
    write_adapter(folder, "diffusers", "unet", state, lora_metadata(pipe.unet, "made"))
    return folder


def both(folder: Path) -> list[Path]:
    """Two adapters of different ranks and layers."""
    parts = enumerate(PARTS.items())
    return [made(folder / f"forget-{name}", i, *part) for i, (name, part) in parts]


def update(folder: Path, weight: float = 1.0) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weight, by the definition of LoRA."""
    return {
        name: weight * layer.alpha / layer.rank * (layer.up.double() @ layer.down.double())
        for name, layer in read_adapter(folder).layers.items()
    }
