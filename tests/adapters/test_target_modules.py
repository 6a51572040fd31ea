from __future__ import annotations

import pytest
from families import FAMILIES
from torch import nn

from diffusers_fdu.adapters.lora import attach, lora_config
from diffusers_fdu.adapters.target_modules import input_width, target_modules, text_attention


def test_default_targets_are_keys_and_values_of_cross_attention(pipe) -> None:
    assert target_modules(pipe.unet, None) == ["attn2.to_k", "attn2.to_v"]
    assert target_modules(pipe.unet, ["attn2.to_q"]) == ["attn2.to_q"]


@pytest.mark.parametrize("suffix", ["to_z", "attn2", "o_k", ""])
def test_a_suffix_that_names_no_linear_layer_is_refused(pipe, suffix) -> None:
    with pytest.raises(ValueError, match="no linear layer of UNet2DConditionModel"):
        target_modules(pipe.unet, [suffix])


def test_width_is_that_of_the_layers_alone(pipe) -> None:
    # 16 is the width of the text; the UNet's own widths are 8 and 16, its inner ones up to 64.
    assert input_width(pipe.unet, ["attn2.to_k", "attn2.to_v"]) == 16
    layers = nn.ModuleDict({"to_k": nn.Linear(7, 5), "net_to_k": nn.Linear(99, 1)})
    assert input_width(layers, ["to_k"]) == 7


def test_width_is_the_same_once_adapted(pipe) -> None:
    attach(pipe.unet, "x", lora_config(pipe.unet, 2, None, None), seed=0)
    assert input_width(pipe.unet, ["attn2.to_k"]) == 16


def test_a_star_fits_anything(pipe) -> None:
    up = target_modules(pipe.unet, ["up_blocks.*.attn2.to_k", "attn2.to_v"])
    assert len(up) == 3 and up[-1] == "attn2.to_v"
    assert all(n.startswith("up_blocks.") and n.endswith(".attn2.to_k") for n in up[:-1])
    with pytest.raises(ValueError, match="named 'up.*.attn3'"):
        target_modules(pipe.unet, ["up.*.attn3"])


KINDS = {
    "sdxl": ("cross-attention", 16, 16),
    "hunyuan_dit": ("cross-attention", 4, 4),
    "sd3": ("joint attention", 4, 4),
    "flux": ("joint attention", 4, 2),
    "flux2_klein": ("joint attention", 3, 2),
    "lumina2": ("one stream", 8, 4),
}


@pytest.mark.parametrize(("key", "found"), KINDS.items(), ids=KINDS)
def test_layers_that_read_the_text(key, found) -> None:
    """How many are adapted, and how many of these read nothing but the text's own stream."""
    kind, count, own = found
    pipe = FAMILIES[key].build()
    model = getattr(pipe, "transformer", None) or pipe.unet
    assert text_attention(model) == kind
    attach(model, "x", lora_config(model, 2, None, None), seed=0)
    adapted = {n.split(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    assert len(adapted) == count
    single = [n for n in adapted if n.startswith(("single_", "layers."))]
    assert count - len(single) == own


def test_a_denoiser_that_reads_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot tell where Sequential reads the text"):
        target_modules(nn.Sequential(nn.Linear(2, 2)), None)
