"""Which layers of a denoiser are adapted: those through which it reads the text.

Three kinds of denoiser cover all families, told apart by their layers' names:

- cross-attention: keys and values are made of the text alone, as in the paper;
- joint attention: text and picture attend to each other, and the text's own keys and values have
  projections of their own. Blocks of a single stream have one projection for both; it is adapted
  too, since these blocks (38 of FLUX.1's 57) read the text again;
- one stream: text and picture share every projection; those of the text's own refiner and of the
  blocks are adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

TEXT_LAYERS: dict[str, tuple[str, ...]] = {
    "cross-attention": ("attn2.to_k", "attn2.to_v"),
    "joint attention": (
        "add_k_proj",
        "add_v_proj",
        "single_transformer_blocks.*.attn.to_k",
        "single_transformer_blocks.*.attn.to_v",
        "single_transformer_blocks.*.attn.to_qkv_mlp_proj",  # FLUX.2 has one for all
    ),
    "one stream": (
        "context_refiner.*.to_k",
        "context_refiner.*.to_v",
        "layers.*.to_k",
        "layers.*.to_v",
    ),
}
"""Of each kind, the names' endings; the first of them tells the kind."""


def text_attention(model: nn.Module) -> str:
    """How a denoiser reads the text: a key of `TEXT_LAYERS`.

    Raises:
        ValueError: if no kind fits.
    """
    names = _linear_names(model)
    for kind, (first, *_) in TEXT_LAYERS.items():
        if _matching(names, first):
            return kind
    raise ValueError(
        f"cannot tell where {type(model).__name__} reads the text: set target_modules to the "
        "names of its layers, such as 'attn2.to_k'"
    )


def has_cross_attention(model: nn.Module) -> bool:
    """Whether keys and values of a denoiser are made of the text alone."""
    return bool(_matching(_linear_names(model), TEXT_LAYERS["cross-attention"][0]))


def target_modules(model: nn.Module, wanted: Sequence[str] | None) -> list[str]:
    """Names of the layers to adapt, or the default for this denoiser.

    Args:
        model: the denoiser.
        wanted: endings of the names of linear layers, such as "attn2.to_q", where "*" stands
            for anything; None: see `TEXT_LAYERS`.

    Returns:
        Endings as they are, and in place of one with "*" the names that it fits.

    Raises:
        ValueError: if an ending fits no linear layer of the model.
    """
    names = _linear_names(model)
    if wanted is None:
        wanted = [end for end in TEXT_LAYERS[text_attention(model)] if _matching(names, end)]
    chosen: list[str] = []
    for end in wanted or [""]:
        found = _matching(names, end) if end else []
        if not found:
            raise ValueError(
                f"no linear layer of {type(model).__name__} is named {end!r}: "
                "set target_modules to endings such as 'attn2.to_k'"
            )
        chosen += found if "*" in end else [end]
    return chosen


def input_width(model: nn.Module, modules: Sequence[str]) -> int:
    """The most inputs that any linear layer with one of these endings has."""
    return max(
        getattr(module, "in_features", 0)
        for name, module in model.named_modules()
        if any(name == end or name.endswith(f".{end}") for end in modules)
    )


def _linear_names(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | BaseTunerLayer)]


def _matching(names: Sequence[str], end: str) -> list[str]:
    if "*" in end:
        return [n for n in names if fnmatchcase(n, end) or fnmatchcase(n, f"*.{end}")]
    return [n for n in names if n == end or n.endswith(f".{end}")]
