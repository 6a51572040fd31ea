"""Denoisers that Accelerate's hooks move: where they run, and how an adapter is trained on them.

`pipe.enable_model_cpu_offload()` moves the whole denoiser to the accelerator when it is first
called; it is moved once and stays for the training. `pipe.enable_sequential_cpu_offload()` keeps
every layer's weights on the CPU and brings them one by one; its hooks would take the adapter's
weights away too, so for the training they are replaced by hooks on the frozen layers alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import cpu_offload, hooks
from torch import nn


class Placement(NamedTuple):
    """Where a denoiser is asked, and in which dtype."""

    device: torch.device
    dtype: torch.dtype


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return list(hook.hooks) if isinstance(hook, hooks.SequentialHook) else [hook] if hook else []


def is_streamed(model: nn.Module) -> bool:
    """Whether weights are brought layer by layer."""
    attached = (hook for module in model.modules() for hook in _hooks(module))
    is_aligned = any(isinstance(hook, hooks.AlignDevicesHook) for hook in attached)
    return is_aligned and any(p.is_meta for p in model.parameters())


def is_offloaded(model: nn.Module) -> bool:
    """Whether a model is moved to the accelerator as a whole when it is called."""
    return any(isinstance(hook, hooks.CpuOffload) for hook in _hooks(model))


def check_streamed(model: nn.Module) -> None:
    """Refuse a streamed denoiser whose weights lose something when hooks are taken off and put on.

    These are of a class of their own, as bitsandbytes', which keep scales beside the tensor.
    """
    kinds = {type(p) for p in model.parameters()} - {nn.Parameter}
    names = [kind.__name__ for kind in kinds if issubclass(kind, nn.Parameter)]
    if names and is_streamed(model):
        loss = f"sequential CPU offload loses the scales of {min(names)}"
        raise ValueError(f"{loss}: use enable_model_cpu_offload")


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype a model computes in: what it says itself, or that of its first floating weight."""
    dtype = getattr(model, "dtype", None)  # not of weights kept in float32 or quantised
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def placement(model: nn.Module) -> Placement:
    """Where a model runs: where its hooks take it, or where it is."""
    attached = (hook for module in model.modules() for hook in _hooks(module))
    devices = (getattr(hook, "execution_device", None) for hook in attached)
    device = next((device for device in devices if device is not None), None)
    if device is None:
        device = next(model.parameters()).device
    return Placement(torch.device(device), compute_dtype(model))


@contextmanager
def onloaded(model: nn.Module) -> Iterator[None]:
    """Take the hooks that move a denoiser off for a while.

    A model that is moved as a whole is moved to where it runs; one that is streamed stays on the
    CPU, see `streamed`.
    """
    check_streamed(model)
    device, offloads, streams = placement(model).device, is_offloaded(model), is_streamed(model)
    if offloads:
        model.to(device)
    elif streams:
        hooks.remove_hook_from_module(model, recurse=True)
    try:
        yield
    finally:
        if offloads:
            model.to("cpu")
        elif streams:
            hooks.remove_hook_from_module(model, recurse=True)
            cpu_offload(model, device, offload_buffers=len(model._parameters) > 0)


@contextmanager
def streamed(model: nn.Module, device: torch.device, enabled: bool) -> Iterator[None]:
    """Bring frozen weights to the device layer by layer, where trained ones stay; if enabled.

    The model is on the CPU, without hooks, and has its adapter attached.
    """
    if not enabled:
        yield
        return
    try:
        for module in model.modules():
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(p.requires_grad for p in parameters):
                hooks.add_hook_to_module(module, hooks.AlignDevicesHook(device, offload=True))
            elif parameters or module._buffers:
                module.to(device)
        yield
    finally:
        hooks.remove_hook_from_module(model, recurse=True)
        model.to("cpu")
