"""Which layers of a denoiser are adapted: those through which it reads the text.

Three kinds of denoiser cover all families, told apart by their layers' names:

- cross-attention: keys and values are made of the text alone, as in the paper;
- joint attention: text and picture attend to each other, and the text's own keys and values have
  projections of their own. Blocks of a single stream have one projection for both; it is adapted
  too, since these blocks (38 of FLUX.1's 57) read the text again;
- one stream: text and picture share every projection; those of the text's own refiner and of the
  blocks are adapted.
"""

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
"""The endings of the layers' names, by kind; the first ending tells the kind."""


def text_attention(model: nn.Module) -> str:
    """How a denoiser reads the text: a key of `TEXT_LAYERS`."""
    for kind, (first, *_) in TEXT_LAYERS.items():
        if _linear_layers(model, first):
            return kind
    name = type(model).__name__
    raise ValueError(f"cannot tell where {name} reads the text: set target_modules to its layers")


def has_cross_attention(model: nn.Module) -> bool:
    """Whether keys and values of a denoiser are made of the text alone."""
    return bool(_linear_layers(model, TEXT_LAYERS["cross-attention"][0]))


def target_modules(model: nn.Module, endings: Sequence[str] | None) -> list[str]:
    """The layers to adapt, as endings of their names; an ending with "*" gives the names it fits.

    Endings are such as "attn2.to_q", where "*" stands for anything; None stands for those of
    `TEXT_LAYERS` that the denoiser has.
    """
    if endings is None:
        kind = TEXT_LAYERS[text_attention(model)]
        endings = [ending for ending in kind if _linear_layers(model, ending)]
    modules: list[str] = []
    for ending in endings or [""]:
        names = _linear_layers(model, ending) if ending else []
        if not names:
            raise ValueError(
                f"no linear layer of {type(model).__name__} is named {ending!r}: "
                "set target_modules to endings such as 'attn2.to_k'"
            )
        modules += names if "*" in ending else [ending]
    return modules


def input_width(model: nn.Module, endings: Sequence[str]) -> int:
    """The most inputs that any linear layer with one of these endings has."""
    names = [name for ending in endings for name in _linear_layers(model, ending)]
    return max(getattr(model.get_submodule(name), "in_features", 0) for name in names)


def _linear_layers(model: nn.Module, ending: str) -> list[str]:
    """Names of the linear layers, adapted or not, that are the ending or end with it."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | BaseTunerLayer)]
    if "*" in ending:
        return [n for n in names if fnmatchcase(n, ending) or fnmatchcase(n, f"*.{ending}")]
    return [n for n in names if n == ending or n.endswith(f".{ending}")]
