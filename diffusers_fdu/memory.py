"""How much memory a training takes, and settings that take little.

What a training holds on the accelerator: the denoiser's weights; the adapter's weights, their
gradients and AdamW's two moments in float32; and what autograd keeps of a forward pass of one
micro-batch, measured on one row. With gradient checkpointing that is the blocks' inputs, and one
block's own while it is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import adapters
from .answers import predict
from .config import Settings
from .layout import Layout
from .offload import onloaded, placement
from .performance import checkpointed
from .recorder import Recorder
from .replay import Entry, ReplayBuffer

GIB = 2**30
STATES = 4  # weight, gradient and two moments
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes that a training takes, by what for.

    Args:
        denoiser: the frozen weights.
        others: weights of text encoders and autoencoder, on the accelerator while recording alone
            if they are offloaded.
        adapter: the adapter's weights, gradients and moments.
        activations: of one micro-batch.
        offloads: whether the others leave the accelerator while training.
    """

    denoiser: int
    others: int
    adapter: int
    activations: int
    offloads: bool

    @property
    def training(self) -> int:
        """Peak while training."""
        others = 0 if self.offloads else self.others
        return self.denoiser + self.adapter + self.activations + others

    def __str__(self) -> str:
        parts = (
            ("denoiser", self.denoiser),
            ("adapter, gradients and moments", self.adapter),
            ("activations of a micro-batch", self.activations),
            ("text encoders and autoencoder", 0 if self.offloads else self.others),
        )
        lines = [f"  {name}: {size / GIB:.2f} GiB" for name, size in parts if size]
        return "\\n".join([f"training takes about {self.training / GIB:.2f} GiB:", *lines])


def small(settings: Settings, model: nn.Module) -> Settings:
    """The same training in little memory: micro-batches of one row, checkpointing, offloading."""
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
    checkpointing = "on" if performance.gradient_checkpointing else "off: the model has none"
    return "\\n".join(
        [
            "low_vram:",
            f"  {train.gradient_accumulation_steps} micro-batches of {train.batch_size} row a step",
            f"  {data.record_batch} image recorded at a time",
            f"  gradient checkpointing {checkpointing}",
            "  text encoders and autoencoder on the CPU while training",
            str(estimate),
        ]
    )


def estimate(
    pipe: Any, model: nn.Module, settings: Settings, pipeline_kwargs: dict[str, Any]
) -> Estimate:
    """Measure one row's forward pass and add up; the pipe stays as it is.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: of the training.
        pipeline_kwargs: of the recorded runs, such as height and width.

    Raises:
        ValueError: see `lora_config` and `Recorder`.
    """
    train, _, performance = settings
    call = Recorder(pipe, pipeline_kwargs).first_call(["a photo"]).inputs
    before, name = adapters.snapshot(model), "fdu-estimate"
    config = adapters.lora_config(model, train.rank, train.alpha, train.target_modules)
    denoiser = _bytes(model)
    try:
        model.eval()
        with onloaded(model), torch.enable_grad():
            parameters = adapters.attach(model, name, config, seed=0)
            adapter = STATES * FLOAT * sum(p.numel() for p in parameters)
            with _kept(model) as whole:
                answer = model(**_unflat(call, model))
            del answer
            one = sum(whole.values())
            if performance.gradient_checkpointing:
                with checkpointed(model, True), _kept(model) as inputs:
                    answer = model(**_unflat(call, model))
                del answer
                one = sum(inputs.values()) + one // _blocks(model)
    finally:
        adapters.remove(model, name, before)
    rows = train.batch_size * (1 if train.surgery or not train.retain_weight else 2)
    components = getattr(pipe, "components", {}).values()
    others = [m for m in components if isinstance(m, nn.Module) and m is not model]
    return Estimate(
        denoiser, sum(map(_bytes, others)), adapter, rows * one, performance.offload
    )


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _row(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(moved, value))
        return value.to(device) if torch.is_tensor(value) else value

    return unflatten({name: moved(value) for name, value in inputs.items()})


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of the storages that autograd keeps, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield kept


def _units(model: nn.Module) -> list[nn.Module]:
    """What is checkpointed: the members of lists of blocks that hold no such list themselves."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> bool:
        inside = False
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                for member in child:
                    if not visit(member) and any(member.parameters()):
                        found.append(member)
                    inside = True
            else:
                inside |= visit(child)
        return inside

    visit(model)
    return found
