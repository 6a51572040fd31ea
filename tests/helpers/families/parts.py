"""What tiny pipelines are made of: tokenizers, text encoders, autoencoders, UNets."""

from __future__ import annotations

import string
from typing import Any

import diffusers as d
import torch
import transformers as t
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

FLOW = d.FlowMatchEulerDiscreteScheduler
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


def word_tokens(prompt: str, width: int) -> torch.Tensor:
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
