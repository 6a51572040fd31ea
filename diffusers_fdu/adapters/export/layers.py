"""LoRA layers by the names, and in the layout, of the models' original code.

diffusers splits what the original transformers have in one matrix: FLUX.1's double blocks and
SD3's blocks make queries, keys and values at once, and FLUX.1's single blocks the MLP's inputs,
too. The update of such a matrix stacks those of its parts. With dW_i = s_i B_i A_i,

    [0; dW_k; dW_v] = s [[0, 0], [B_k, 0], [0, B_v]] [A_k; A_v]

so the ranks add up and nothing is lost; parts that are not adapted get rows of zeros.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..adapter_file import AdapterFile, Layer

UNET = re.compile(
    r"(?P<side>down_blocks|mid_block|up_blocks)(\.(?P<block>\d+))?\.attentions\.(?P<layer>\d+)\."
    r"(?P<rest>proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)))"
)

BLOCK = re.compile(r"(?P<kind>\w*transformer_blocks)\.(?P<block>\d+)\.(?P<rest>.+)")
NO_NAME = (
    "layer {!r} is not exported: only attention and feed-forward layers of the blocks that read "
    "the text are"
)
HEIGHTS = {"proj_mlp": 4}  # FLUX.1's MLPs are 4 times as wide as its attention

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
QKV2 = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
MATRICES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "flux": {
        "double_blocks_{}_img_attn_qkv": (DOUBLE, QKV),
        "double_blocks_{}_img_attn_proj": (DOUBLE, ("attn.to_out.0",)),
        "double_blocks_{}_img_mlp_0": (DOUBLE, ("ff.net.0.proj",)),
        "double_blocks_{}_img_mlp_2": (DOUBLE, ("ff.net.2",)),
        "double_blocks_{}_txt_attn_qkv": (DOUBLE, ADDED_QKV),
        "double_blocks_{}_txt_attn_proj": (DOUBLE, ("attn.to_add_out",)),
        "double_blocks_{}_txt_mlp_0": (DOUBLE, ("ff_context.net.0.proj",)),
        "double_blocks_{}_txt_mlp_2": (DOUBLE, ("ff_context.net.2",)),
        "single_blocks_{}_linear1": (SINGLE, (*QKV, "proj_mlp")),
        "single_blocks_{}_linear2": (SINGLE, ("proj_out",)),
    },
    "sd3": {
        "joint_blocks_{}_x_block_attn_qkv": (DOUBLE, QKV),
        "joint_blocks_{}_x_block_attn_proj": (DOUBLE, ("attn.to_out.0",)),
        "joint_blocks_{}_x_block_mlp_fc1": (DOUBLE, ("ff.net.0.proj",)),
        "joint_blocks_{}_x_block_mlp_fc2": (DOUBLE, ("ff.net.2",)),
        "joint_blocks_{}_context_block_attn_qkv": (DOUBLE, ADDED_QKV),
        "joint_blocks_{}_context_block_attn_proj": (DOUBLE, ("attn.to_add_out",)),
        "joint_blocks_{}_context_block_mlp_fc1": (DOUBLE, ("ff_context.net.0.proj",)),
        "joint_blocks_{}_context_block_mlp_fc2": (DOUBLE, ("ff_context.net.2",)),
        "joint_blocks_{}_x_block_attn2_qkv": (DOUBLE, QKV2),
        "joint_blocks_{}_x_block_attn2_proj": (DOUBLE, ("attn2.to_out.0",)),
    },
}
"""The original's matrices, the kind of diffusers' blocks, and the layers that make up each."""


def named_layers(adapter_file: AdapterFile, family: str) -> dict[str, Layer]:
    """An adapter's layers by the names that other programs know them by, without "lora_unet_"."""
    layers = adapter_file.layers
    if family in ("sd", "sdxl"):
        return {_unet_name(n, family): x for n, x in _with_one_alpha(layers).items()}
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Layer]] = {}
    for name, layer in layers.items():
        matrix, order, part = _place(name, family)
        groups.setdefault((matrix, order), {})[part] = layer
    return {matrix: _join(parts, order) for (matrix, order), parts in groups.items()}


def _with_one_alpha(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The same updates with one alpha, the most frequent; what differs goes into `up`.

    diffusers 0.42 reads a UNet's alphas, and then gives that one to all attention layers.
    """
    [(alpha, _)] = Counter(layer.alpha for layer in layers.values()).most_common(1)
    return {
        name: layer._replace(up=_scaled(layer.up, layer.alpha / alpha), alpha=alpha)
        for name, layer in layers.items()
    }


def _scaled(value: Tensor, factor: float) -> Tensor:
    """Scaled in float32, and rounded once to the tensor's own dtype."""
    return value if factor == 1 else (value.float() * factor).to(value.dtype)


def _unet_name(name: str, family: str) -> str:
    match = UNET.fullmatch(name)
    if match is None:
        raise ValueError(NO_NAME.format(name))
    if family == "sd":
        return name.replace(".", "_")
    # SDXL's original counts through all blocks: down from 1, after the first convolution, two
    # layers and what halves the size a block; up from 0, three layers a block.
    number = int(match["block"] or 0) * 3 + int(match["layer"])
    start = {
        "down_blocks": f"input_blocks_{number + 1}",
        "mid_block": "middle_block",
        "up_blocks": f"output_blocks_{number}",
    }[match["side"]]
    return f"{start}_1_{match['rest'].replace('.', '_')}"


def _place(name: str, family: str) -> tuple[str, tuple[str, ...], str]:
    """The original matrix that a layer is part of, that matrix's parts, and which part it is."""
    match = BLOCK.fullmatch(name)
    for matrix, (kind, order) in MATRICES[family].items():
        if match is not None and match["kind"] == kind and match["rest"] in order:
            return matrix.format(match["block"]), order, match["rest"]
    raise ValueError(NO_NAME.format(name))


def _join(parts: Mapping[str, Layer], order: Sequence[str]) -> Layer:
    """One layer that does what the adapted parts of its matrix do.

    The parts are of shapes (rank, in) and (out, rank); `order` names all parts of the matrix, as
    their rows lie in it.
    """
    if len(order) == 1:
        return parts[order[0]]
    name, first = next(iter(parts.items()))
    # Rows of a part of height 1; the parts that are not adapted have rows, too.
    unit = first.up.shape[0] // HEIGHTS.get(name, 1)
    ups = {name: first.up.new_zeros(unit * HEIGHTS.get(name, 1), 0) for name in order}
    # Where scales differ there is no one alpha: they go into the weights.
    is_one_scale = len({layer.alpha / layer.rank for layer in parts.values()}) == 1
    for name, part in parts.items():
        if len(part.up) != len(ups[name]):
            raise ValueError(f"{name} has {len(part.up)} rows, which do not fit its matrix")
        ups[name] = part.up if is_one_scale else _scaled(part.up, part.alpha / part.rank)
    down = torch.cat([parts[name].down for name in order if name in parts])
    alpha = sum(layer.alpha for layer in parts.values()) if is_one_scale else float(len(down))
    return Layer(down, torch.block_diag(*ups.values()), alpha)
