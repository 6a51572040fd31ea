"""Adapters for good: added to the weights of a pipe's denoiser, which is plain afterwards."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Linear
from torch import Tensor, nn

from ..pipelines.denoiser import denoiser_names
from ..pipelines.offload import onloaded
from . import lora as adapters

PLAIN = (Linear, Conv1d, Conv2d, Conv3d)


def fuse(pipe: Any, adapter_names: Sequence[str] | None = None) -> float:
    """Add adapters to the weights, at the strengths they have, and take them off the pipe.

    The pipe draws what it drew, without PEFT, and what `save_pretrained` writes holds no adapter
    that could be switched off. To bring a concept back, someone needs the original weights, or
    has to train.

    `pipe.fuse_lora()` and `pipe.unload_lora_weights()` do that, too, but PixArt and HunyuanDiT
    are without them; `unload_lora_weights` also takes the adapters that were not fused, and
    without it `save_pretrained` writes layers by names that no pipeline loads; the sum is made in
    the weights' dtype, even where those are quantised and rounding takes most of it. Here it is
    made in float64 and rounded once.

    Args:
        pipe: a pipeline whose denoisers carry adapters; text encoders are left as they are.
        adapter_names: active adapters, by default all; the others stay on the pipe.

    Returns:
        What rounding took: |W' - (W + dW)|_F / |dW|_F over all layers. On the embedded model
        that was 3e-8 in float32, 3e-4 in float16 and 2e-3 in bfloat16; it grows as the update
        gets smaller.

    Raises:
        ValueError: for a name that is not active, or none at all; for a denoiser that is compiled
            or quantised; for adapters that are fused or off, or that are more than LoRA, such as
            DoRA. The pipe is then as it was.

    Example:
        >>> pipe = load_unlearned(pipe, "forget-dog")
        >>> fuse(pipe) < 1e-4
        True
        >>> pipe.save_pretrained("forgotten")
    """
    models = [getattr(pipe, component) for component in denoiser_names(pipe)]
    active_in = [adapters.snapshot(model).active for model in models]
    active = list(dict.fromkeys(name for names in active_in for name in names))
    fused = active if adapter_names is None else list(dict.fromkeys(adapter_names))
    if not fused:
        raise ValueError("there is no active adapter to fuse: load one, or call pipe.set_adapters")
    for name in fused:
        if name not in active:
            raise ValueError(f"adapter {name!r} is not active: active are {', '.join(active)}")
    # All denoisers are checked before any is changed.
    for model in models:
        adapters.check_denoiser(model)
        _check_layers(model, fused)
    lost = total = 0.0
    for model, names in zip(models, active_in, strict=True):
        with onloaded(model):
            for layer in adapters.tuner_layers(model):
                rounding, size = _fuse_layer(layer, _present(layer, fused))
                lost, total = lost + rounding, total + size
            for name in fused:
                if name in names:  # it may be active in one denoiser and not in the other
                    adapters.remove(model, name)
    return (lost / total) ** 0.5 if total else 0.0


def _present(layer: Any, names: Sequence[str]) -> list[str]:
    """Which of these adapters have weights in a layer, and are active there."""
    present = {name for part in layer.adapter_layer_names for name in getattr(layer, part, {})}
    return [name for name in names if name in present and name in layer.active_adapters]


def _check_layers(model: nn.Module, adapter_names: Sequence[str]) -> None:
    for layer in adapters.tuner_layers(model):
        names = _present(layer, adapter_names)
        weight = getattr(layer.get_base_layer(), "weight", None)
        if names and weight is not None and not _is_exact(weight):
            kind = type(weight.data if type(weight) is nn.Parameter else weight).__name__
            raise ValueError(
                f"the weights of {type(model).__name__} are quantised ({kind}, {weight.dtype}), "
                "and would lose part of an adapter: fuse it on a plain pipe, and quantise that"
            )
        for name in names:
            if weight is None or not _is_plain(layer, name):
                kind = f"{type(layer).__module__}.{type(layer).__name__}"
                raise ValueError(
                    f"adapter {name!r} is no plain LoRA in a {kind}: use pipe.fuse_lora()"
                )


def _is_exact(weight: Any) -> bool:
    """Whether a weight is a plain tensor of 16 bits or more, and not quantised."""
    is_plain = type(weight) is nn.Parameter and type(weight.data) is Tensor
    return is_plain and weight.is_floating_point() and weight.element_size() >= 2


def _is_plain(layer: Any, name: str) -> bool:
    """Whether scaling B A is all that an adapter adds to a layer."""
    return (
        type(layer) in PLAIN
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and not getattr(layer, "fan_in_fan_out", False)
        and getattr(layer.get_base_layer(), "groups", 1) == 1
    )


@torch.no_grad()
def _fuse_layer(layer: Any, names: Sequence[str]) -> tuple[float, float]:
    """Add adapters to a layer; returns |W' - (W + dW)|^2 and |dW|^2."""
    if not names:
        return 0.0, 0.0
    weight = layer.get_base_layer().weight
    delta = torch.zeros_like(weight, dtype=torch.float64)
    for name in names:
        # PEFT's own product is in the adapter's dtype, and rounds there.
        up, down = (half[name].weight.double() for half in (layer.lora_B, layer.lora_A))
        update = up.flatten(1) @ down.flatten(1)
        delta += (layer.scaling[name] * update).reshape(weight.shape).to(delta.device)
    exact = weight + delta
    weight.copy_(exact)
    return (weight - exact).square().sum().item(), delta.square().sum().item()
