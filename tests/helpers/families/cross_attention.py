"""Tiny pipelines of pictures whose denoisers read the text by cross-attention."""

from __future__ import annotations

from types import MethodType
from typing import Any

import diffusers as d
import torch
import transformers as t

from .parts import (
    FLOW,
    autoencoder,
    clip,
    clip_tokenizer,
    gemma,
    letter_tokenizer,
    t5,
    t5_tokenizer,
    unet,
    word_tokens,
)


def sd(prediction_type: str = "epsilon") -> Any:
    return d.StableDiffusionPipeline(
        unet=unet(),
        scheduler=d.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
        ),
        vae=autoencoder(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_unet(**options: Any) -> Any:
    return unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        **options,
    )


def euler() -> Any:
    return d.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )


def sdxl() -> Any:
    return d.StableDiffusionXLPipeline(
        unet=sdxl_unet(projection_class_embeddings_input_dim=80, cross_attention_dim=64),
        scheduler=euler(),
        vae=autoencoder(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(t.CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
    )


def kolors() -> Any:
    pipe = d.KolorsPipeline(
        unet=sdxl_unet(projection_class_embeddings_input_dim=80, cross_attention_dim=32),
        scheduler=euler(),
        vae=autoencoder(),
        text_encoder=None,
        tokenizer=None,
    )

    def encode_prompt(self: Any, prompt: Any, negative_prompt: Any = None, **_: Any) -> tuple:
        def encoded(prompts: list[str]) -> tuple:
            texts = [word_tokens(one, 32) for one in prompts]
            padded = [torch.cat([text, text.new_zeros(80 - len(text), 32)]) for text in texts]
            return torch.stack(padded), torch.stack([text.mean(0) for text in texts])

        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts, pooled = encoded(prompts)
        others, other_pooled = encoded(negative_prompt or [""] * len(prompts))
        return texts, others, pooled, other_pooled

    pipe.encode_prompt = MethodType(encode_prompt, pipe)
    return pipe


def pixart(kind: Any) -> Any:
    return kind(
        transformer=d.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
        ).eval(),
        scheduler=d.DDIMScheduler(),
        vae=autoencoder(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def sana() -> Any:
    blocks = ("ResBlock", "EfficientViTBlock")
    return d.SanaPipeline(
        transformer=d.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=32,
        ),
        vae=d.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=[1, 1],
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        scheduler=FLOW(shift=7.0),
        text_encoder=gemma(head_dim=16, intermediate_size=64, num_hidden_layers=1),
        tokenizer=letter_tokenizer(),
    )


def hunyuan_dit() -> Any:
    bert = t.BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
    )
    return d.HunyuanDiTPipeline(
        transformer=d.HunyuanDiT2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ).eval(),
        vae=autoencoder(),
        scheduler=d.DDPMScheduler(),
        text_encoder=t.BertModel(bert).eval(),
        tokenizer=letter_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
