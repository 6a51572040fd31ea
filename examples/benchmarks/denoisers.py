"""Denoisers, text encoders and autoencoders of published sizes, with random weights."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
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
TINY_XL_UNET = {
    **TINY_UNET,
    "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
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
TINY_CLIP_2 = {**TINY_CLIP, "projection_dim": 32}
TOKENS = 77
FLUX = {
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
TINY_FLUX = {
    "guidance_embeds": True,
    "in_channels": 16,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "axes_dims_rope": (4, 6, 6),
}


@dataclass(frozen=True)
class Size:
    """One family: what its denoiser is made of and asked.

    Args:
        unet: configuration of the UNet; None: it is FLUX's transformer.
        texts: configurations of its text encoders.
        image: side of its pictures in pixels.
        modules: adapted by this library.
        transformer: configuration of FLUX's transformer.
        tokens: length of a text.
    """

    unet: dict[str, Any] | None
    texts: tuple[dict[str, Any], ...]
    image: int
    modules: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    transformer: dict[str, Any] = field(default_factory=dict)
    tokens: int = TOKENS

    @property
    def patches(self) -> int:
        """Tokens of a picture, each of 16 x 16 pixels, in FLUX."""
        return (self.image // 16) ** 2


FLUX_MODULES = ("attn.add_k_proj", "attn.add_v_proj")
SIZES = {
    "tiny": Size(TINY_UNET, (TINY_CLIP,), 64),
    "tiny_xl": Size(TINY_XL_UNET, (TINY_CLIP, TINY_CLIP_2), 64),
    "tiny_flux": Size(None, (), 64, FLUX_MODULES, TINY_FLUX, 16),
    "sd1": Size(SD1_UNET, (CLIP_L,), 512),
    "sdxl": Size(SDXL_UNET, (CLIP_L, CLIP_G), 1024),
    "flux": Size(None, (), 1024, FLUX_MODULES, FLUX, 512),
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
        return build(FluxTransformer2DModel, size.transformer, device, dtype)
    return build(UNet2DConditionModel, size.unet, device, dtype)


def no_four_bit(device: str) -> str:
    """Why there are no 4-bit weights here; empty where there are."""
    if device != "cuda":
        return "4-bit weights are for a GPU"
    return "" if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"


def quantize(model: nn.Module) -> None:
    """Put the weights of all linear layers into NF4, one by one."""
    import bitsandbytes as bnb

    # Names alone, since a list of modules would keep all weights until the end.
    for name in [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]:
        module = model.get_submodule(name)
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
        made.weight = bnb.nn.Params4bit(weight.data, requires_grad=False, quant_type="nf4").to(
            weight.device
        )
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
        config = size.transformer
        state = {
            "hidden_states": torch.randn(size.patches, config["in_channels"]),
            "timestep": torch.rand(()),
            "guidance": torch.tensor(3.5),
        }
        width, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
        text = {
            "encoder_hidden_states": torch.randn(size.tokens, width, dtype=dtype),
            "pooled_projections": torch.randn(pooled, dtype=dtype),
        }
        return state, text
    side, width = size.unet["sample_size"], size.unet["cross_attention_dim"]
    state = {"sample": torch.randn(4, side, side), "timestep": torch.randint(1000, ())}
    text = {"encoder_hidden_states": torch.randn(TOKENS, width, dtype=dtype)}
    if len(size.texts) == 2:
        pooled = size.texts[1]["projection_dim"]
        text["added_cond_kwargs.text_embeds"] = torch.randn(pooled, dtype=dtype)
        state["added_cond_kwargs.time_ids"] = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024])
    return state, text
