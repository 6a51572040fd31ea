"""The pipeline that a command loads: where it runs, in which dtype, and how it is called."""

import os
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


def guidance_arguments(model: str, guidance_scale: float | None = None) -> dict[str, Any]:
    """Arguments of a pipeline's runs; the embedded model is drawn with a guidance scale of 4."""
    if guidance_scale is None and model == "emoji":
        guidance_scale = 4.0
    return {} if guidance_scale is None else {"guidance_scale": guidance_scale}


def resolve_placement(device: str | None, dtype: str) -> tuple[str, str]:
    """A device that is there and a dtype that suits it, as PyTorch names them.

    Without a device it is CUDA if there is any; each of several processes takes its own. On CUDA
    the dtype "auto" is bfloat16, or float16 where the card would emulate bfloat16; elsewhere it
    is float32.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
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
    if dtype != "auto":
        return device, dtype
    if torch.device(device).type != "cuda":
        return device, "float32"
    with torch.cuda.device(device):
        is_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return device, "bfloat16" if is_bf16 else "float16"


def load_pipeline(model: str, device: str | None, dtype: str, streams: bool = False) -> Any:
    """Load "emoji", the embedded pipeline, or one from a folder or the Hub, where it is placed.

    With `streams` the weights stay on the CPU and go to the device layer by layer. In float32 on
    CUDA, products of matrices may use TF32 from now on, in the whole process, as PyTorch lets
    convolutions do by itself.
    """
    device, dtype = resolve_placement(device, dtype)
    import torch
    from diffusers import DiffusionPipeline

    from ..emoji.loading import load_emoji_pipeline

    if dtype == "float32" and torch.device(device).type == "cuda":
        # The setting that keeps PyTorch's older and newer flags for TF32 consistent.
        torch.set_float32_matmul_precision("high")
    torch_dtype = getattr(torch, dtype)
    if model == "emoji":
        pipe: Any = load_emoji_pipeline(torch_dtype=torch_dtype)
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
