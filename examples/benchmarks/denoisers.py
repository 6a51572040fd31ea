"""Denoisers, text encoders and autoencoders of published sizes, with random weights."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SD1_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_UNET = {
    "sample_size": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = 77
FLUX_TOKENS = 512
FLUX_PATCHES = 64 * 64  # of an image of 1024 x 1024


@dataclass(frozen=True)
class Size:
    """One family: what its denoiser is made of and asked.

    Args:
        unet: configuration of the UNet; None: FLUX's transformer.
        texts: configurations of its text encoders.
        image: side of its pictures in pixels.
        parameters: of the denoiser, billions.
        modules: adapted by this library.
    """

    unet: dict[str, Any] | None
    texts: tuple[dict[str, Any], ...]
    image: int
    parameters: float
    modules: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")


SIZES = {
    "tiny": Size(TINY_UNET, (TINY_CLIP,), 64, 0.001),
    "sd1": Size(SD1_UNET, (CLIP_L,), 512, 0.86),
    "sdxl": Size(SDXL_UNET, (CLIP_L, CLIP_G), 1024, 2.57),
    "flux": Size(None, (), 1024, 11.9, ("attn.add_k_proj", "attn.add_v_proj")),
}


def build(kind: type, config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A model in its dtype on its device from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(CLIPTextConfig(**config)) if "CLIP" in kind.__name__ else kind(**config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def denoiser(size: Size, device: str, dtype: torch.dtype) -> nn.Module:
    """The UNet, or FLUX's transformer."""
    if size.unet is None:
        return build(FluxTransformer2DModel, {"guidance_embeds": True}, device, dtype)
    return build(UNet2DConditionModel, size.unet, device, dtype)


def no_four_bit(device: str) -> str:
    """Why there are no 4-bit weights here; empty where there are."""
    if device != "cuda":
        return "4-bit weights are for a GPU"
    return "" if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"


def quantize(model: nn.Module) -> None:
    """Put the weights of all linear layers into NF4, one by one."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight, module.bias
        dtype = weight.dtype
        made = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        made.weight = bnb.nn.Params4bit(
            weight.data.cpu(), requires_grad=False, quant_type="nf4"
        ).to(weight.device)
        made.bias = bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made)
        del module, weight
    model.is_loaded_in_4bit = True  # PEFT looks there


def autoencoder(size: Size, device: str, dtype: torch.dtype) -> nn.Module:
    """Stable Diffusion's, whose pictures have eight times the latents' side."""
    config = dict(VAE)
    if size.image == 64:
        config |= {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    return build(AutoencoderKL, config, device, dtype)


def text_encoders(size: Size, device: str, dtype: torch.dtype) -> list[nn.Module]:
    """CLIP ViT-L, and ViT-bigG beside it in SDXL."""
    kinds: tuple[type, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    return [
        build(kind, config, device, dtype) for kind, config in zip(kinds, size.texts, strict=False)
    ]


def encode(encoders: list[nn.Module], count: int, device: str) -> dict[str, Any]:
    """Text arguments of the UNet for random captions."""
    ids = torch.randint(49406, (count, TOKENS), device=device)
    with torch.no_grad():
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    if len(outputs) == 1:
        return {"encoder_hidden_states": outputs[0][0]}
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * count, device=device)
    added = {"text_embeds": outputs[1].text_embeds, "time_ids": ids.to(hidden.dtype)}
    return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}


def row(size: Size, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random state and a random text of one denoiser call, as a replay buffer keeps them."""
    if size.unet is None:
        state = {
            "hidden_states": torch.randn(FLUX_PATCHES, 64),
            "timestep": torch.rand(()),
            "guidance": torch.tensor(3.5),
        }
        text = {
            "encoder_hidden_states": torch.randn(FLUX_TOKENS, 4096, dtype=dtype),
            "pooled_projections": torch.randn(768, dtype=dtype),
        }
        return state, text
    side, width = size.unet["sample_size"], size.unet["cross_attention_dim"]
    state = {"sample": torch.randn(4, side, side), "timestep": torch.randint(1000, ())}
    text = {"encoder_hidden_states": torch.randn(TOKENS, width, dtype=dtype)}
    if len(size.texts) == 2:
        text["added_cond_kwargs.text_embeds"] = torch.randn(1280, dtype=dtype)
        state["added_cond_kwargs.time_ids"] = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024])
    return state, text
