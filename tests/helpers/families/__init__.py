"""The supported pipelines, tiny, with random weights, built offline.

`FAMILIES` is the table that the tests, docs/families.md and the README go by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers as d
import torch

from .cross_attention import hunyuan_dit, kolors, pixart, sana, sd, sdxl
from .joint_attention import (
    auraflow,
    chroma,
    flux,
    flux2_dev,
    flux2_klein,
    lumina2,
    qwen_image,
    sd3,
    z_image,
)
from .video import ltx, wan, wan_transformer


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
