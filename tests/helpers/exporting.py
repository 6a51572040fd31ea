"""Adapters with random weights to be exported, and what pipelines draw with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES
from families.parts import unet
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file

from diffusers_fdu import load_unlearned
from diffusers_fdu.adapters.target_modules import target_modules
from diffusers_fdu.adapters.write import write_adapter

PIPELINES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
}
EVERYTHING = {
    "sd": ["attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"],
    "flux": ["to_q", "to_v", "add_q_proj", "to_out.0", "to_add_out", "ff.net.2", "proj_mlp"],
    "sd3": ["to_k", "add_q_proj", "add_v_proj", "to_out.0", "ff.net.0.proj", "ff_context.net.2"],
}
EVERYTHING["sdxl"] = [*EVERYTHING["sd"], "proj_in", "proj_out"]


def build(family: str) -> Any:
    """A tiny pipeline; Stable Diffusion XL's with as many blocks and layers as the real one."""
    pipe = FAMILIES[family].build()
    if family == "sdxl":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe.unet = unet(
                layers_per_block=2,
                block_out_channels=(4, 8, 8),
                down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
                up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
                attention_head_dim=(2, 4, 4),
                transformer_layers_per_block=(1, 1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=80,
                cross_attention_dim=64,
            )
    return pipe


def component(family: str) -> str:
    return "unet" if family in ("sd", "sdxl") else "transformer"


def write_random(
    pipe: Any, family: str, folder: Path, wanted: list[str] | None = None, **patterns: Any
) -> Path:
    """An adapter of rank 2 and alpha 3 with random weights, large enough to be seen."""
    model = getattr(pipe, component(family))
    modules = target_modules(model, wanted)
    config = {"r": 2, "lora_alpha": 3, "target_modules": modules}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, **patterns}
    inject_adapter_in_model(LoraConfig(**config), model, "random")
    draws = torch.Generator().manual_seed(5)
    state = {
        key: torch.randn(value.shape, generator=draws) * (0.5 if ".lora_B." in key else 0.1)
        for key, value in get_peft_model_state_dict(model, adapter_name="random").items()
    }
    folder.mkdir(exist_ok=True)
    write_adapter(folder, "diffusers", component(family), state, config)
    recipe = {"pipeline": PIPELINES[family], "adapter_name": "random"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def latents(pipe: Any, family: str) -> torch.Tensor:
    run = {"num_inference_steps": 2, "output_type": "latent", **FAMILIES[family].run}
    return pipe("a dog", generator=torch.Generator().manual_seed(0), **run).images.clone()


def expected(family: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with the adapter and without it."""
    pipe = build(family)
    without = latents(pipe, family)
    load_unlearned(pipe, folder)
    return latents(pipe, family), without


def error(found: torch.Tensor, wanted: torch.Tensor, without: torch.Tensor) -> float:
    """As a share of what the adapter changes."""
    change = (wanted - without).norm()
    assert change > 1e-3 * without.norm(), "the adapter changes nothing: the test is void"
    return ((found - wanted).norm() / change).item()


def updates(path: Path) -> dict[str, torch.Tensor]:
    """Every layer's alpha / rank up @ down, as kohya's documentation has it."""
    file = load_file(path)
    found = {}
    for key in [key for key in file if key.endswith(".lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        down, up = file[key], file[f"{name}.lora_up.weight"]
        scale = file[f"{name}.alpha"] / down.shape[0]
        found[name] = scale * (up.flatten(1) @ down.flatten(1)).reshape(
            up.shape[0], *down.shape[1:]
        )
    return found
