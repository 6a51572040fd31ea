"""Tiny pipelines of pictures whose denoisers have text and picture in one attention."""

from __future__ import annotations

from types import MethodType
from typing import Any

import diffusers as d
import torch
import transformers as t

from .parts import (
    CHAT,
    FLOW,
    autoencoder,
    clip,
    clip_tokenizer,
    flow_autoencoder,
    gemma,
    letter_tokenizer,
    qwen3,
    t5,
    t5_tokenizer,
    word_tokens,
)


def sd3() -> Any:
    return d.StableDiffusion3Pipeline(
        transformer=d.SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
        ),
        scheduler=FLOW(),
        vae=flow_autoencoder(4),
        text_encoder=clip(t.CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(t.CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def flux(guidance_embeds: bool = True) -> Any:
    return d.FluxPipeline(
        transformer=d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=guidance_embeds,
        ),
        scheduler=FLOW(),
        vae=flow_autoencoder(1),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def flux2_transformer(**options: Any) -> Any:
    return d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
        **options,
    )


def flux2_autoencoder() -> Any:
    return d.AutoencoderKLFlux2(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flux2_klein() -> Any:
    return d.Flux2KleinPipeline(
        scheduler=FLOW(),
        vae=flux2_autoencoder(),
        text_encoder=qwen3(t.Qwen3ForCausalLM),
        tokenizer=letter_tokenizer(CHAT),
        transformer=flux2_transformer(guidance_embeds=False),
    )


def flux2_dev() -> Any:
    pipe = d.Flux2Pipeline(
        scheduler=FLOW(),
        vae=flux2_autoencoder(),
        text_encoder=None,
        tokenizer=None,
        transformer=flux2_transformer(),
    )

    def encode(text_encoder: Any, tokenizer: Any, prompt: Any, **_: Any) -> torch.Tensor:
        texts = [word_tokens(one, 16) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        return torch.stack([torch.cat([x, x.new_zeros(64 - len(x), 16)]) for x in texts])

    pipe._get_mistral_3_small_prompt_embeds = encode
    return pipe


def lumina2() -> Any:
    sizes = {"head_dim": 4, "intermediate_size": 8, "num_hidden_layers": 2, "sliding_window": 2}
    return d.Lumina2Pipeline(
        transformer=d.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=8,
            num_layers=2,
            num_attention_heads=1,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=[4, 2, 2],
            cap_feat_dim=8,
        ),
        vae=flow_autoencoder(4),
        scheduler=FLOW(),
        text_encoder=gemma(**sizes),
        tokenizer=letter_tokenizer(),
    )


def auraflow() -> Any:
    return d.AuraFlowPipeline(
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pos_embed_max_size=256,
        ),
        vae=autoencoder(),
        scheduler=FLOW(),
        text_encoder=t5(t.UMT5EncoderModel, t.UMT5Config),
        tokenizer=t5_tokenizer(),
    )


def qwen_image() -> Any:
    pipe = d.QwenImagePipeline(
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=d.AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=FLOW(),
        text_encoder=None,
        tokenizer=None,
    )

    def encode(self: Any, prompt: Any, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded to the longest, with a mask, as the pipeline's own does."""
        texts = [word_tokens(one, 16) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        masks = [torch.ones(len(text), dtype=torch.long) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(texts, batch_first=True), pad(masks, batch_first=True)

    pipe._get_qwen_prompt_embeds = MethodType(encode, pipe)
    return pipe


def z_image() -> Any:
    transformer = d.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        token.data.fill_(1)  # made empty, to be loaded
    return d.ZImagePipeline(
        transformer=transformer,
        vae=autoencoder((8, 16), 16, shift_factor=0.1),
        scheduler=FLOW(),
        text_encoder=qwen3(t.Qwen3Model),
        tokenizer=letter_tokenizer(CHAT),
    )


def chroma() -> Any:
    return d.ChromaPipeline(
        transformer=d.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        vae=flow_autoencoder(1),
        scheduler=FLOW(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )
