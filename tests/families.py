"""The supported pipelines, tiny, with random weights, built offline.

`FAMILIES` is the table that the tests, docs/families.md and the README go by.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import diffusers as d
import torch
import transformers as t
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['role'] }}: {{ m['content'] }}\n"
    "{% else %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endif %}{% endfor %}"
)


def clip_tokenizer() -> Any:
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    made = t.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    made.model_max_length = 77
    return made


def t5_tokenizer() -> Any:
    letters = string.ascii_letters + string.digits + ".,!?'\"-:;"
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    made = t.T5Tokenizer(vocab=special + [(c, -3.0) for c in letters], extra_ids=0)
    made.model_max_length = 512
    return made


def letter_tokenizer(chat: str | None = None) -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *string.printable])}
    base = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    made = t.PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>", **names)
    made.model_max_length = 512
    made.chat_template = chat
    return made


def clip(kind: Any = None) -> Any:
    config = t.CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=1000,
    )
    return (kind or t.CLIPTextModel)(config).eval()


def t5(kind: Any = None, config: Any = None) -> Any:
    made = (config or t.T5Config)(
        vocab_size=200,
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
    )
    return (kind or t.T5EncoderModel)(made).eval()


def qwen3(kind: Any) -> Any:
    config = t.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=512,
    )
    return kind(config).eval()


def gemma(**sizes: int) -> Any:
    config = t.Gemma2Config(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=256,
        attn_implementation="eager",
        **sizes,
    )
    return t.Gemma2Model(config).eval()


def spoken(prompt: str, width: int) -> torch.Tensor:
    """What stands in for a text encoder too large to be tiny: a vector for each letter."""
    table = torch.randn(256, width, generator=torch.Generator().manual_seed(1))
    return table[[ord(c) for c in f"<{prompt}>"]]


def autoencoder(widths: tuple = (4, 8), latents: int = 4, **options: Any) -> Any:
    count = len(widths)
    return d.AutoencoderKL(
        block_out_channels=widths,
        latent_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        norm_num_groups=1,
        **options,
    )


def flow_autoencoder(latents: int) -> Any:
    options = {"use_quant_conv": False, "use_post_quant_conv": False}
    return autoencoder((4,), latents, shift_factor=0.06, scaling_factor=1.5, **options)


def unet(**options: Any) -> Any:
    defaults = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 2,
    }
    return d.UNet2DConditionModel(**{**defaults, **options})


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
            texts = [spoken(one, 32) for one in prompts]
            padded = [torch.cat([text, text.new_zeros(80 - len(text), 32)]) for text in texts]
            return torch.stack(padded), torch.stack([text.mean(0) for text in texts])

        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts, pooled = encoded(prompts)
        others, other_pooled = encoded(negative_prompt or [""] * len(prompts))
        return texts, others, pooled, other_pooled

    pipe.encode_prompt = MethodType(encode_prompt, pipe)
    return pipe


FLOW = d.FlowMatchEulerDiscreteScheduler


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
        texts = [spoken(one, 16) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        return torch.stack([torch.cat([x, x.new_zeros(64 - len(x), 16)]) for x in texts])

    pipe._get_mistral_3_small_prompt_embeds = encode
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
        texts = [spoken(one, 16) for one in ([prompt] if isinstance(prompt, str) else prompt)]
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


def wan_transformer() -> Any:
    return d.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan(**options: Any) -> Any:
    return d.WanPipeline(
        transformer=wan_transformer(),
        vae=d.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        scheduler=FLOW(shift=7.0),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        **options,
    )


def ltx() -> Any:
    return d.LTXPipeline(
        transformer=d.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        ),
        vae=d.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            patch_size=1,
        ),
        scheduler=FLOW(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
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


@dataclass(frozen=True)
class Family:
    """A pipeline that is supported.

    Args:
        name: what users call it.
        make: builds one; `build` is what to call.
        prediction: what the denoiser predicts.
        guidance: how it is asked twice in a guided step: "batched", "separate", "embedded" (a
            number among its inputs) or "none".
        run: arguments of a small picture.
        guided: its argument for guidance.
        off: the value without guidance.
        streams: whether diffusers runs it under sequential offload at all.
    """

    name: str
    make: Callable[[], Any]
    prediction: str = "flow"
    guidance: str = "batched"
    run: dict[str, Any] = field(default_factory=dict)
    guided: str = "guidance_scale"
    off: float = 1.0
    streams: bool = True

    def build(self) -> Any:
        """The same one at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe


SMALL = {"height": 8, "width": 8}
SHORT = {"max_sequence_length": 64}
BINS = {"use_resolution_binning": False}
VIDEO = {"num_frames": 9, "max_sequence_length": 64}

FAMILIES = {
    "sd": Family("Stable Diffusion 1, 2", sd, "noise"),
    "sd_v": Family("Stable Diffusion 2, v-prediction", lambda: sd("v_prediction"), "v"),
    "sdxl": Family("Stable Diffusion XL", sdxl, "noise"),
    "kolors": Family("Kolors", kolors, "noise"),
    "sd3": Family("Stable Diffusion 3", sd3, run={"height": 16, "width": 16, **SHORT}),
    "flux": Family("FLUX.1 dev", flux, guidance="embedded", run=SMALL | SHORT),
    "flux_schnell": Family("FLUX.1 schnell", lambda: flux(False), "flow", "none", SMALL | SHORT),
    "flux2_dev": Family("FLUX.2 dev", flux2_dev, guidance="embedded", run=SMALL),
    "flux2_klein": Family(
        "FLUX.2 klein",
        flux2_klein,
        guidance="separate",
        run=SMALL | SHORT | {"text_encoder_out_layers": (1,)},
    ),
    "pixart_alpha": Family(
        "PixArt-α", lambda: pixart(d.PixArtAlphaPipeline), "noise", run=BINS | SHORT
    ),
    "pixart_sigma": Family(
        "PixArt-Σ", lambda: pixart(d.PixArtSigmaPipeline), "noise", run=BINS | SHORT
    ),
    "sana": Family(
        "Sana",
        sana,
        run={"height": 32, "width": 32, **SHORT, **BINS}
        | {"complex_human_instruction": None, "clean_caption": False},
    ),
    "hunyuan_dit": Family(
        "HunyuanDiT",
        hunyuan_dit,
        "noise",
        run=BINS | {"height": 16, "width": 16},
        streams=False,  # its pooling reads a weight beside its layer
    ),
    "lumina2": Family("Lumina 2", lumina2, guidance="separate", run={"height": 32, "width": 32}),
    "auraflow": Family("AuraFlow", auraflow, run={"height": 16, "width": 16, **SHORT}),
    "chroma": Family("Chroma", chroma, guidance="separate", run=SMALL | SHORT),
    "qwen_image": Family(
        "Qwen-Image",
        qwen_image,
        guidance="separate",
        run={"height": 32, "width": 32, "negative_prompt": " "},
        guided="true_cfg_scale",
    ),
    "z_image": Family("Z-Image", z_image, run={"height": 32, "width": 32}, off=0.0),
    "wan": Family("Wan 2.1", wan, guidance="separate", run={"height": 16, "width": 16, **VIDEO}),
    "wan22": Family(
        "Wan 2.2",
        lambda: wan(transformer_2=wan_transformer(), boundary_ratio=0.9),
        guidance="separate",
        run={"height": 16, "width": 16, **VIDEO},
    ),
    "ltx": Family("LTX-Video", ltx, run={"height": 32, "width": 32, **VIDEO}),
}
