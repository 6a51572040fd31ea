"""The pipeline that a command loads: where it runs, in which dtype, and how it is called."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

DTYPES = ("auto", "float32", "bfloat16", "float16")


def run_arguments(guidance_scale: float | None, model: str | None = None) -> dict[str, Any]:
    """Arguments of a pipeline's runs; the embedded model is drawn with a guidance of 4."""
    if guidance_scale is None and model == "emoji":
        guidance_scale = 4.0
    return {} if guidance_scale is None else {"guidance_scale": guidance_scale}


class Placed(NamedTuple):
    """Where a pipeline runs, and the dtype of its weights, as PyTorch names them."""

    device: str
    dtype: str


def resolve_placement(device: str | None, dtype: str) -> Placed:
    """A device that is there, and a dtype that suits it.

    Args:
        device: None: CUDA if it is there, and of several processes each its own.
        dtype: "auto": on CUDA bfloat16, or float16 where the card would emulate bfloat16;
            elsewhere float32.

    Raises:
        ValueError: for a device that cannot be used, or an unknown dtype.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
    device = _checked_device(device)
    if dtype != "auto":
        return Placed(device, dtype)
    if torch.device(device).type != "cuda":
        return Placed(device, "float32")
    with torch.cuda.device(device):
        is_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Placed(device, "bfloat16" if is_bf16 else "float16")


def _checked_device(device: str | None) -> str:
    import torch
    from accelerate.utils import parse_flag_from_env

    if device is None:
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        device = "cpu" if on_cpu else "cuda"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {reason}") from error
    return device


def load_pipeline(model: str, device: str, dtype: str, streams: bool = False) -> Any:
    """The embedded pipeline, or one from a folder or the Hub.

    In float32 on CUDA, products of matrices may use TF32 from now on, in the whole process, as
    PyTorch lets convolutions do by itself.

    Args:
        model: "emoji", a folder or a Hub id.
        device: where it runs, see `resolve_placement`.
        dtype: of its weights, "float32", "bfloat16" or "float16".
        streams: leave the weights on the CPU and bring them to another device layer by layer.

    Raises:
        ValueError: if it cannot be loaded.
    """
    import torch
    from diffusers import DiffusionPipeline

    from ..emoji.loading import load_emoji_pipeline

    if dtype == "float32" and torch.device(device).type == "cuda":
        # The setting that keeps PyTorch's older and newer flags for TF32 consistent.
        torch.set_float32_matmul_precision("high")
    torch_dtype = getattr(torch, dtype)
    pipe: Any
    if model == "emoji":
        pipe = load_emoji_pipeline(torch_dtype=torch_dtype)
        return pipe.to(device)
    try:
        pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch_dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot load {model!r}: {reason} (pass a folder, a Hub id, or `emoji`)"
        ) from error
    if streams and device != "cpu":
        pipe.enable_sequential_cpu_offload(device=device)
        return pipe
    return pipe.to(device)
