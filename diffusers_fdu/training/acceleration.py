"""How training runs on a machine: precision, memory, compilation. None of it changes the aim."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from diffusers.training_utils import offload_models
from torch import nn

from ..config import Auto, PerformanceConfig
from ..pipelines.offload import check_streamed, placement


def check_supported(performance: PerformanceConfig, model: nn.Module) -> None:
    """Raise a ValueError for what this denoiser cannot do, before anything is recorded."""
    check_streamed(model)
    if performance.gradient_checkpointing is True and not can_checkpoint(model):
        raise ValueError(
            f"{type(model).__name__} has no gradient checkpointing: "
            "use gradient_checkpointing=False and a smaller micro_batch_size"
        )
    if performance.shard and getattr(model, "hf_quantizer", None):
        raise ValueError("a quantised denoiser cannot be sharded: use shard=False")


def precision(
    model: nn.Module, mixed_precision: str
) -> tuple[Callable[[], AbstractContextManager], torch.amp.GradScaler]:
    """Autocast for the model's device, and the scaling that float16 gradients need."""
    device, model_dtype = placement(model)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision)
    is_half = (dtype or model_dtype) == torch.float16
    autocast = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None)
    return autocast, torch.amp.GradScaler(device.type, enabled=is_half)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Let PyTorch choose among its other attention kernels for a while.

    On an H200 with PyTorch 2.11, which prefers cuDNN's there, its backward pass failed for
    FLUX, and gave NaN for small heads; see docs/hardware.md.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


@contextmanager
def set_aside(pipe: Any, keep: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Move a pipe's other modules to the CPU, and back where they were."""
    others = [m for m in getattr(pipe, "components", {}).values() if m is not keep]
    movable = [m for m in others if isinstance(m, nn.Module) and can_set_aside(m)]
    with offload_models(*movable, device="cpu", offload=enabled):
        if enabled and movable:
            clear_device_cache()
        yield


def can_set_aside(module: nn.Module) -> bool:
    """Whether a module is on one accelerator, not quantised, and moved by no hooks."""
    if getattr(module, "hf_quantizer", None) or getattr(module, "hf_device_map", None):
        return False
    if any(hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook") for m in module.modules()):
        return False
    devices = {t.device for t in (*module.parameters(), *module.buffers())}
    return len(devices) == 1 and devices.pop().type not in ("cpu", "meta")


def can_checkpoint(model: nn.Module) -> bool:
    """Whether a denoiser has gradient checkpointing."""
    return bool(getattr(model, "_supports_gradient_checkpointing", False))


def start_checkpointing(model: nn.Module) -> bool:
    """Switch gradient checkpointing on; False if the denoiser has none, or had it on already."""
    if not can_checkpoint(model) or getattr(model, "is_gradient_checkpointing", False):
        return False
    model.enable_gradient_checkpointing()  # type: ignore[operator]
    return True


@contextmanager
def checkpointed(model: nn.Module, enabled: bool | Auto) -> Iterator[None]:
    """Begin with gradient checkpointing if it is enabled, and end as the model was."""
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    flags = [(m, {n: m.__dict__[n] for n in names if n in m.__dict__}) for m in model.modules()]
    try:
        if enabled is True:
            start_checkpointing(model)
        yield
    finally:
        for module, values in flags:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(values)


@contextmanager
def compiled(model: nn.Module, enabled: bool, trial: Callable[[], Any]) -> Iterator[None]:
    """Compile a denoiser's repeated blocks in place, or all of it where it names none.

    `trial` runs the model as it will be run. Where it fails compiled, a RuntimeWarning says why
    and the model is left uncompiled.
    """
    compiled_before = {m for m in model.modules() if m._compiled_call_impl is not None}

    def uncompile() -> None:
        for module in set(model.modules()) - compiled_before:
            module.__dict__.pop("_compiled_call_impl", None)

    try:
        if enabled:
            try:
                if getattr(model, "_repeated_blocks", None):
                    model.compile_repeated_blocks()  # type: ignore[operator]
                else:
                    model.compile()
                trial()
            except Exception as error:
                uncompile()
                reason = str(error).strip().splitlines()[:1] or [""]
                warnings.warn(
                    f"the denoiser cannot be compiled ({type(error).__name__}: {reason[0]}); "
                    "training goes on without",
                    RuntimeWarning,
                    stacklevel=4,
                )
        yield
    finally:
        uncompile()
