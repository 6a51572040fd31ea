"""How much memory a training takes, and settings that take little.

While it trains, the accelerator holds the denoiser's weights; the adapter's weights, their
gradients and AdamW's two moments; and what autograd keeps of a forward pass, measured here on one
row and on two. With gradient checkpointing that is what goes into the checkpointed blocks, and all
of the largest block while it is computed again. Gradients of activations come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import adapters
from .config import Settings
from .denoiser import predicted, sample_name
from .identity import plain_tensors
from .offload import is_offloaded, is_streamed, onloaded, placement, streamed
from .performance import can_set_aside, checkpointed, precision
from .recorder import Recorder, untouched
from .values import unflatten

GIB = 2**30
STATES = 4  # weight, gradient and two moments
GRADIENTS = 2  # of activations, as large as the largest of them, alive at once


@dataclass(frozen=True)
class Estimate:
    """Bytes that a training takes on the accelerator, by what for.

    Args:
        denoiser: the frozen weights; of one layer where they are brought layer by layer.
        adapter: the adapter's weights, gradients and moments.
        activations: of one micro-batch.
        others: weights of text encoders and autoencoder that stay while training.
        recording: all weights while recording; what a picture takes comes on top.
    """

    denoiser: int
    adapter: int
    activations: int
    others: int
    recording: int

    @property
    def training(self) -> int:
        """Peak while training."""
        return self.denoiser + self.adapter + self.activations + self.others

    def __str__(self) -> str:
        parts = (
            ("denoiser", self.denoiser),
            ("adapter, its gradients and moments", self.adapter),
            ("activations of a micro-batch", self.activations),
            ("text encoders and autoencoder", self.others),
        )
        return "\n".join(
            [
                f"training takes about {self.training / GIB:.2f} GiB",
                *(f"  {name}: {size / GIB:.3f} GiB" for name, size in parts if size),
                f"recording takes {self.recording / GIB:.2f} GiB of weights",
            ]
        )


def small(settings: Settings, model: nn.Module) -> Settings:
    """The same training in little memory: rows one by one, checkpointing, offloading."""
    train, data, performance = settings
    rows = train.batch_size * train.gradient_accumulation_steps
    supports = bool(getattr(model, "_supports_gradient_checkpointing", False))
    return Settings(
        replace(train, batch_size=1, gradient_accumulation_steps=rows),
        replace(data, record_batch=1),
        replace(performance, gradient_checkpointing=supports, offload=True),
    )


def plan(settings: Settings, estimate: Estimate) -> str:
    """What `low_vram` chose, in words."""
    train, data, performance = settings
    lines = [
        "low_vram:",
        f"  {train.gradient_accumulation_steps} micro-batches of {train.batch_size} row of each "
        "role in a step",
        f"  {data.record_batch} picture recorded at a time",
        "  gradient checkpointing"
        + ("" if performance.gradient_checkpointing else ": this model has none"),
    ]
    if estimate.recording > estimate.denoiser + estimate.others:
        lines.append("  text encoders and autoencoder on the CPU while training; keep them off")
        lines.append("  while recording, too, with pipe.enable_model_cpu_offload()")
    return "\n".join([*lines, str(estimate)])


def estimate(pipe: Any, model: nn.Module, settings: Settings, kwargs: dict[str, Any]) -> Estimate:
    """Ask the denoiser about one row and about two, and add up; the pipe stays as it is.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: of the training.
        kwargs: of the recorded runs, such as height and width.

    Raises:
        ValueError: see `lora_config` and `Recorder`.
    """
    with untouched(pipe):
        recorder = Recorder(pipe, kwargs)
        calls = [recorder.first_call(["a"] * number).inputs for number in (1, 2)]
    denoiser, adapter, activations = measured(model, [unflatten(c) for c in calls], settings)
    device, offload = placement(model).device, settings.offloads
    others, recording = _others(pipe, model, device, denoiser, offload)
    return Estimate(denoiser, adapter, activations, others, recording)


def measured(
    model: nn.Module, calls: Sequence[dict[str, Any]], settings: Settings
) -> tuple[int, int, int]:
    """Bytes of the denoiser, of an adapter on it and of the activations of a micro-batch.

    Args:
        model: the denoiser.
        calls: its inputs for one prompt, and for two.
        settings: of the training.
    """
    train, _, performance = settings
    before, name = adapters.snapshot(model), "fdu-estimate"
    config = adapters.lora_config(model, train.rank, train.alpha, train.target_modules)
    device, streams = placement(model).device, is_streamed(model)
    autocast, _ = precision(model, performance.mixed_precision)
    try:
        model.eval()
        with onloaded(model), torch.inference_mode(False):
            parts = model.modules() if streams else [model]
            denoiser = max(weight_bytes(part, recurse=not streams) for part in parts)
            parameters = adapters.attach(model, name, config, seed=0)
            adapter = STATES * sum(p.numel() * p.element_size() for p in parameters)
            with streamed(model, device, streams), torch.enable_grad(), autocast():
                one, two = (
                    _activations(model, call, performance.gradient_checkpointing) for call in calls
                )
            adapters.finish(model, name, before)
    finally:
        adapters.remove(model, name, before)
    rows = train.batch_size * (1 if train.surgery or not train.retain_weight else 2)
    # What does not grow with the rows, such as a table of positions, is there once.
    per_row = (two - one) // len(calls[0][sample_name(model)])
    return denoiser, adapter, max(0, 2 * one - two) + rows * per_row


def _others(
    pipe: Any, model: nn.Module, device: torch.device, denoiser: int, offload: bool
) -> tuple[int, int]:
    """Weights besides the denoiser's while training, and all while recording."""
    components = getattr(pipe, "components", {}).values()
    others = [m for m in components if isinstance(m, nn.Module) and m is not model]
    stay = leave = 0
    hooked = [denoiser] if is_offloaded(model) else []  # one of these at a time
    for module in others:
        size = weight_bytes(module)
        if is_offloaded(module) or is_streamed(module):
            hooked.append(0 if is_streamed(module) else size)
        elif next(module.parameters()).device != device:
            continue
        elif offload and can_set_aside(module):
            leave += size
        else:
            stay += size
    whole = max(hooked, default=0) + (0 if is_offloaded(model) else denoiser)
    return stay, whole + stay + leave


def weight_bytes(module: nn.Module, recurse: bool = True) -> int:
    """Bytes of a module's weights as they are stored, quantised or not."""
    tensors = (*module.parameters(recurse), *module.buffers(recurse))
    return sum(part.numel() * part.element_size() for t in tensors for part in plain_tensors(t))


def _activations(model: nn.Module, inputs: dict[str, Any], checkpoints: bool) -> int:
    """Bytes that autograd keeps until the backward pass, and of the largest block it repeats."""
    blocks: list[dict[int, int]] = []
    entered: dict[int, int] = {}

    def block(module: nn.Module, *args: Any) -> Any:
        for value in args:
            if torch.is_tensor(value):
                entered[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        with _kept(model) as own:
            output = module(*args)
        blocks.append(own)
        return output

    with checkpointed(model, checkpoints, block), _kept(model) as kept:
        answer = predicted(model(**inputs), inputs[sample_name(model)])
        seen = {**kept, **entered}
        del answer
    again = (sum(size for key, size in own.items() if key not in seen) for own in blocks)
    largest = max((max(own.values(), default=0) for own in (kept, *blocks)), default=0)
    return sum(seen.values()) + max(again, default=0) + GRADIENTS * largest


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of the storages that autograd keeps, by address, the model's weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield kept
