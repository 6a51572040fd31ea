"""What a training would choose on cards of several sizes, and how much memory that takes.

    python -m examples.benchmarks.hardware

Denoisers and autoencoders of published sizes are made of fake tensors, which have shapes and no
values, and traced as `FDUnlearner` traces a pipe's own; so this runs in minutes on a CPU, and
nothing in the table was measured on a card. Of other models the weights count alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import typer
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_fdu.settings import settings
from diffusers_fdu.training.auto_fit import Fit, choose
from diffusers_fdu.training.memory import GIB, Footprint
from diffusers_fdu.training.memory_trace import weight_bytes

from . import denoisers
from .denoisers import SIZES, TOKENS

CARDS = (8, 12, 24, 80)  # GB, as cards are named
SYSTEM = 0.5  # GiB that CUDA and a desktop take
CLIP_L, CLIP_G, T5_XXL = 0.123, 0.695, 4.762  # billions of parameters
BLOCK = 64  # weights that share a scale in NF4
SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}


class Weights(nn.Module):
    """A model of which nothing but its size is known."""

    def __init__(self, billions: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(int(billions * 1e9), dtype=dtype), False)


class Unpacked(torch.autograd.Function):
    """A product with 4-bit weights, which are unpacked once for it and once for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        """(..., in) to (..., out)."""
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype, device=x.device).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the input."""
        (gradient,) = gradients
        weight = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device)
        return gradient @ weight, None, None


class PackedLinear(nn.Linear):
    """A linear layer with weights of the size of NF4."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(1, 1, bias=False)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        count = layer.in_features * layer.out_features
        self.weight = nn.Parameter(torch.empty(count // 2, dtype=torch.uint8), False)
        self.scales = nn.Parameter(torch.empty(count // BLOCK), False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        shape = self.out_features, self.in_features
        found = Unpacked.apply(input, self.weight, shape)
        return found if self.bias is None else found + self.bias


@dataclass(frozen=True)
class Family:
    """A pipeline of published size.

    Args:
        name: shown.
        size: in `SIZES`; of its denoiser.
        dtype: of all weights that are not packed.
        texts: text encoders, billions of parameters each.
        packed: the denoiser's linear layers are in NF4.
    """

    name: str
    size: str
    dtype: torch.dtype
    texts: tuple[float, ...]
    packed: bool = False


HALF = torch.bfloat16
FAMILIES = (
    Family("Stable Diffusion 1, float32", "sd1", torch.float32, (CLIP_L,)),
    Family("Stable Diffusion 1", "sd1", HALF, (CLIP_L,)),
    Family("Stable Diffusion XL", "sdxl", HALF, (CLIP_L, CLIP_G)),
    Family("Stable Diffusion 3 medium", "sd3", HALF, (CLIP_L, CLIP_G, T5_XXL)),
    Family("FLUX.1 dev, NF4", "flux", HALF, (CLIP_L, T5_XXL), packed=True),
    Family("FLUX.1 dev", "flux", HALF, (CLIP_L, T5_XXL)),
)


def calls(family: Family, rows: int) -> dict[str, Any]:
    """Inputs of the denoiser for so many prompts."""

    def made(*shape: int) -> Tensor:
        return torch.empty(rows, *shape, dtype=family.dtype)

    time = torch.empty(rows)
    if family.size == "flux":
        patches, tokens = SIZES["flux"].patches, SIZES["flux"].tokens
        return {
            "hidden_states": made(patches, 64),
            "encoder_hidden_states": made(tokens, 4096),
            "pooled_projections": made(768),
            "timestep": time,
            "guidance": torch.empty(rows),
            "txt_ids": torch.empty(tokens, 3),
            "img_ids": torch.empty(patches, 3),
        }
    if family.size == "sd3":
        # 77 tokens of CLIP and 256 of T5, as the pipeline pads them.
        text = {"encoder_hidden_states": made(TOKENS + 256, 4096), "timestep": time}
        return {"hidden_states": made(16, 128, 128), **text, "pooled_projections": made(2048)}
    unet = SIZES[family.size].unet
    assert unet is not None
    side, width = unet["sample_size"], unet["cross_attention_dim"]
    found = {"sample": made(4, side, side), "timestep": time}
    found |= {"encoder_hidden_states": made(TOKENS, width)}
    if family.size == "sdxl":
        return found | {"added_cond_kwargs": {"text_embeds": made(1280), "time_ids": made(6)}}
    return found


def denoiser(family: Family) -> nn.Module:
    """The denoiser, packed if it is to be."""
    if family.size == "sd3":
        return denoisers.build(SD3Transformer2DModel, SD3, "cpu", family.dtype)
    model = denoisers.denoiser(SIZES[family.size], "cpu", family.dtype)
    for name, module in list(model.named_modules()) if family.packed else ():
        if isinstance(module, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, PackedLinear(module))
    return model


class Traced(Footprint):
    """The footprint of a pipeline that would be on a card.

    Args:
        family: the pipeline.
        streams: its layers are brought one by one (`enable_sequential_cpu_offload`).
    """

    def __init__(self, family: Family, streams: bool = False) -> None:
        model = denoiser(family)
        parts = [Weights(count, family.dtype) for count in family.texts]
        vae = denoisers.autoencoder(SIZES["sd1"], "cpu", family.dtype)
        components = {"unet": model, "vae": vae} | {str(i): m for i, m in enumerate(parts)}
        pipe = SimpleNamespace(components=components, vae=vae)
        super().__init__(pipe, model, settings({}), [calls(family, rows) for rows in (1, 2)])
        self.device = torch.device("cuda")  # whose workspaces count, and where parts may leave
        self.leaving, self.staying = self.staying, 0
        self.can_take_turns = not family.packed and not streams
        if streams:
            self.streams, self.leaving = True, 0
            self.denoiser = max(weight_bytes(m, recurse=False) for m in model.modules())
            self.all_weights = self.denoiser


def fits(family: Family, streams: bool) -> list[Fit]:
    """What each card's training would choose."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        measured = Traced(family, streams)
    return [choose(measured, int((size - SYSTEM) * GIB)) for size in CARDS]


def cell(fit: Fit) -> str:
    """What was chosen, and the peaks of recording and training."""
    assert fit.estimate is not None
    chosen = fit.performance
    words = [f"{chosen.micro_batch_size}"]
    words += ["checkpointed"] if chosen.gradient_checkpointing is True else []
    words += ["models take turns"] if fit.offloads_recording else []
    words += ["set aside"] if chosen.offload and not fit.offloads_recording else []
    peaks = f"{fit.estimate.recording / GIB:.1f} / {fit.estimate.training / GIB:.1f}"
    return f"{', '.join(words)}; {peaks}" if fit.fits else f"no: {peaks}"


def main() -> None:
    """Print the table."""
    heads = ["pipeline", *(f"{size} GB" for size in CARDS)]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for family in FAMILIES:
        found = fits(family, streams=False)
        print(f"| {' | '.join([family.name, *map(cell, found)])} |", flush=True)
        if not family.packed and not all(fit.fits for fit in found):
            name = f"{family.name}, sequential offload"
            streamed = fits(family, streams=True)
            print(f"| {' | '.join([name, *map(cell, streamed)])} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
