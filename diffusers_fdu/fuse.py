"""Adapters for good: added to the weights of a pipe's denoiser, which is plain afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from . import adapters
from .denoiser import denoiser_names
from .offload import onloaded


def fuse(pipe: Any, adapter_names: Sequence[str] | None = None) -> float:
    """Add adapters to the weights, at the strengths they have, and take them off the pipe.

        fuse(pipe)
        pipe.save_pretrained("forgotten")

    The pipe draws what it drew, without PEFT, and what `save_pretrained` writes holds no adapter
    that could be switched off. To bring a concept back, someone needs the original weights, or
    has to train.

    For a pipeline that has them, `pipe.fuse_lora()` and `pipe.unload_lora_weights()` do that, too.
    This is for what they do not do: they are missing where diffusers has no LoRA loader (PixArt,
    HunyuanDiT); `unload_lora_weights` takes the adapters that were not fused, too, and if it is
    forgotten, `save_pretrained` writes layers by names that no pipeline loads; the sum is made in
    the weights' dtype, and on quantised weights, where rounding may take most of it, without a
    word. Here the sum is made in float64 and rounded once, and what that took is returned.

    Args:
        pipe: its denoisers carry adapters. Text encoders are left as they are.
        adapter_names: active ones; None: all that are active. The others stay on the pipe.

    Returns:
        What rounding took: |W' - (W + dW)|_F / |dW|_F over all layers. On the embedded model
        that was 3e-8 in float32, 3e-4 in float16 and 2e-3 in bfloat16; the smaller the update,
        the more it is.

    Raises:
        ValueError: for a name that is not active, or none at all; for weights that are quantised;
            see `adapters.check_denoiser`. The pipe is as it was then.
    """
    models = {name: getattr(pipe, name) for name in denoiser_names(pipe)}
    before = {name: adapters.snapshot(model) for name, model in models.items()}
    active = list(dict.fromkeys(name for state in before.values() for name in state.active))
    wanted = active if adapter_names is None else list(dict.fromkeys(adapter_names))
    if not wanted:
        raise ValueError("there is no active adapter to fuse: load one, or call pipe.set_adapters")
    for name in wanted:
        if name not in active:
            raise ValueError(f"adapter {name!r} is not active: active are {', '.join(active)}")
    for model in models.values():
        adapters.check_denoiser(model)
        _check_layers(model, wanted)
    lost = whole = 0.0
    for component, model in models.items():
        with onloaded(model):
            for layer in _layers(model, wanted):
                off, size = _add(layer, wanted)
                lost, whole = lost + off, whole + size
            rest = tuple(name for name in before[component].active if name not in wanted)
            for name in wanted:
                adapters.remove(model, name, replace(before[component], active=rest))
    return (lost / whole) ** 0.5 if whole else 0.0


def _layers(model: nn.Module, names: Sequence[str]) -> list[Any]:
    found: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [layer for layer in found if any(name in layer.scaling for name in names)]


def _check_layers(model: nn.Module, names: Sequence[str]) -> None:
    for layer in _layers(model, names):
        weight = layer.get_base_layer().weight
        is_plain = type(weight) is nn.Parameter and type(weight.data) is Tensor
        if not is_plain or not weight.is_floating_point() or weight.element_size() < 2:
            kind = type(weight.data if type(weight) is nn.Parameter else weight).__name__
            raise ValueError(
                f"the weights of {type(model).__name__} are quantised ({kind}, {weight.dtype}): "
                "rounded to them, part of an adapter is lost. Keep the adapter beside them, or "
                "fuse it on a pipe that is not quantised and quantise that"
            )
        for name in names:
            if name in getattr(layer, "lora_variant", {}):
                raise ValueError(f"adapter {name!r} is no plain LoRA: use pipe.fuse_lora()")


@torch.no_grad()
def _add(layer: Any, names: Sequence[str]) -> tuple[float, float]:
    """Add adapters to a layer: |W' - (W + dW)|^2 and |dW|^2."""
    weight = layer.get_base_layer().weight
    delta = torch.zeros_like(weight, dtype=torch.float64)
    for name in names:
        if name in layer.scaling:
            delta += layer.get_delta_weight(name)
    exact = weight + delta
    weight.copy_(exact)
    return (weight - exact).square().sum().item(), delta.square().sum().item()
