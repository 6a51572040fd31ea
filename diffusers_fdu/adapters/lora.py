"""LoRA adapters on a pipe's own denoiser: attach, remove, switch."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..pipelines.offload import compute_dtype
from .target_modules import target_modules

NAMED = 3  # targets in the name of an adapter


@dataclass(frozen=True)
class AdapterState:
    """What `remove` and `finish` give back: active adapters, and flags of weights and layers."""

    active: tuple[str, ...]
    requires_grad: dict[str, bool]
    training: dict[nn.Module, bool]


def snapshot(model: nn.Module) -> AdapterState:
    """The state of a denoiser before an adapter is attached or removed."""
    active = dict.fromkeys(name for layer in tuner_layers(model) for name in layer.active_adapters)
    requires_grad = {_plain_name(n): p.requires_grad for n, p in model.named_parameters()}
    training = {module: module.training for module in model.modules()}
    return AdapterState(tuple(active), requires_grad, training)


def _plain_name(name: str) -> str:
    """A name as it is without adapters: a layer that carries some is its own `base_layer`."""
    return name.replace(".base_layer", "")


def check_adapter_name(name: str, model: nn.Module) -> None:
    """Refuse names that PEFT cannot hold or that the denoiser already has."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"adapter_name {name!r}: use letters, digits, '_' and '-'")
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"adapter {name!r} is already on the pipe: pass another adapter_name")


def name_for(targets: Sequence[str]) -> str:
    """A name for the adapter that forgets these, such as "forget-dog"."""
    shown = [*targets[:NAMED], *([f"{len(targets) - NAMED} more"] if targets[NAMED:] else [])]
    return "forget-" + (ascii_slug("-".join(shown)).lower() or "concept")


def ascii_slug(text: str) -> str:
    """A text as a name: ASCII letters, digits and single hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def free_name(wanted: str, model: nn.Module) -> str:
    """A name that no adapter of the denoiser has: the wanted one, or with a number."""
    name, taken, i = wanted, getattr(model, "peft_config", {}), 2
    while name in taken:
        name, i = f"{wanted}-{i}", i + 1
    return name


def tuner_layers(model: nn.Module) -> list[Any]:
    """The layers of a denoiser that carry adapters."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _lora_layers(model: nn.Module, adapter_name: str) -> list[Any]:
    """The layers that have this adapter as a LoRA."""
    return [m for m in model.modules() if isinstance(m, LoraLayer) and adapter_name in m.scaling]


def adapter_parameters(model: nn.Module, adapter_name: str) -> list[nn.Parameter]:
    """The weights of one adapter."""
    pattern = re.compile(rf"\.lora_\w+\.{re.escape(adapter_name)}(\.|$)")
    return [p for n, p in model.named_parameters() if pattern.search(n)]


def check_denoiser(model: nn.Module) -> None:
    """Refuse a denoiser that is compiled, or whose adapters are fused or off, for training."""
    if hasattr(model, "_orig_mod"):
        raise ValueError("the denoiser is compiled: unlearn first, then compile it")
    check_layers(model)


def check_layers(model: nn.Module) -> None:
    """Refuse a denoiser whose adapters are fused or off: their strengths have no effect."""
    for layer in tuner_layers(model):
        if layer.merged:
            raise ValueError("an adapter is fused into the denoiser: call pipe.unfuse_lora()")
        if layer.disable_adapters:
            raise ValueError("the denoiser's adapters are off: call pipe.enable_lora()")


def lora_config(
    model: nn.Module, rank: int, alpha: float | None, endings: Sequence[str] | None
) -> LoraConfig:
    """PEFT's configuration of a LoRA for this denoiser, scaled by alpha / rank.

    None as alpha stands for the rank, None as endings for the default `target_modules`.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]  # any number
        target_modules=target_modules(model, endings),
    )


def attach(
    model: nn.Module, adapter_name: str, config: LoraConfig, seed: int
) -> list[nn.Parameter]:
    """Put a new LoRA on a denoiser, active beside what was active; only it is trainable.

    The seed decides its initial weights, which are returned, in float32.
    """
    active = snapshot(model).active
    # The CPU generator alone: torch.manual_seed would seed every device, and not give it back.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        inject(model, config, adapter_name)
    activate(model, [*active, adapter_name])
    model.requires_grad_(False)
    model.eval()
    parameters = adapter_parameters(model, adapter_name)
    for parameter in parameters:
        parameter.requires_grad_(True)
    cast_training_params(model, torch.float32)
    return parameters


def inject(model: nn.Module, config: LoraConfig, adapter_name: str) -> None:
    """Put a new LoRA on a denoiser; flags and what is active are then PEFT's."""
    with warnings.catch_warnings():
        # A second adapter is what is wanted here.
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        if hasattr(model, "add_adapter"):
            model.add_adapter(config, adapter_name)  # type: ignore[operator]
        else:  # PixArt and HunyuanDiT are without diffusers' own
            inject_adapter_in_model(config, model, adapter_name)


def checked_strengths(sources: Sequence[Any], strengths: Sequence[float] | None) -> list[float]:
    """A strength for each adapter of a list, 1 if there are none."""
    if isinstance(sources, str | Path):
        raise TypeError(f"{str(sources)!r} is one adapter: pass a list of them")
    values = [1.0] * len(sources) if strengths is None else list(strengths)
    if len(values) != len(sources):
        raise ValueError(f"{len(sources)} adapters and {len(values)} weights: pass one for each")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"weights must be finite, got {values}")
    return values


def activate(model: nn.Module, names: Sequence[str]) -> None:
    """Make these adapters active, whatever their strengths, which stay as they are."""
    for layer in tuner_layers(model):
        flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.set_adapter(list(names))  # PEFT takes active ones to be in training
        for parameter, is_trained in flags:
            parameter.requires_grad_(is_trained)


def strengths(model: nn.Module, names: Sequence[str]) -> dict[str, float]:
    """Weight of each adapter, as `pipe.set_adapters` sets it, on the first layer that has it."""
    first = {name: layer for name in names for layer in _lora_layers(model, name)[:1]}
    return {n: x.scaling[n] * x.r[n] / x.lora_alpha[n] for n, x in first.items()}


def set_strength(model: nn.Module, adapter_name: str, strength: float) -> None:
    """Set the weight of one adapter, active or not; the others stay as they are."""
    for layer in _lora_layers(model, adapter_name):
        layer.set_scale(adapter_name, strength)


@contextmanager
def scaled(model: nn.Module, adapter_name: str, strength: float) -> Iterator[None]:
    """One adapter at another strength for a while; the others, and what is trainable, stay."""
    layers = _lora_layers(model, adapter_name)
    scaling_before = [layer.scaling[adapter_name] for layer in layers]
    try:
        set_strength(model, adapter_name, strength)
        yield
    finally:
        for layer, scaling in zip(layers, scaling_before, strict=True):
            layer.scaling[adapter_name] = scaling


def finish(model: nn.Module, adapter_name: str, state_before: AdapterState) -> None:
    """End training: the adapter stays, frozen and in the model's dtype; flags go back."""
    for parameter in adapter_parameters(model, adapter_name):
        parameter.requires_grad_(False)
        parameter.grad = None
        parameter.data = parameter.data.to(compute_dtype(model))
    restore_flags(model, state_before)


def remove(model: nn.Module, adapter_name: str, state_before: AdapterState | None = None) -> None:
    """Take an adapter away, if it is there; the rest is as it was before, or stays as it is."""
    state_before = state_before or snapshot(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.delete_adapter(adapter_name)
        if isinstance(layer, LoraLayer) and not layer.lora_A:  # it carries no adapter any more
            model.set_submodule(name, layer.get_base_layer())
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    configs.pop(adapter_name, None)
    if not configs:  # one that failed half-way may have set one of these and not the other
        model.__dict__.pop("peft_config", None)
        if "_hf_peft_config_loaded" in model.__dict__:
            model._hf_peft_config_loaded = False  # type: ignore[assignment]
    activate(model, [name for name in state_before.active if name != adapter_name])
    restore_flags(model, state_before)


def restore_flags(model: nn.Module, state_before: AdapterState) -> None:
    """Give training and gradient flags back as they were."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state_before.requires_grad.get(_plain_name(name), False))
    flags: dict[Any, bool] = {**state_before.training}
    for module in model.modules():  # one that carries an adapter for the first time is new
        module.training = flags.get(module, flags.get(getattr(module, "base_layer", None), False))
