"""Optimizer steps on a random denoiser of published size: ours, and those of the usual loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusers_fdu import DivergenceLoss, PerformanceConfig, TrainConfig
from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.config import DataConfig
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.data.sampler import Sampler
from diffusers_fdu.settings import Settings
from diffusers_fdu.training.callbacks import Hooks
from diffusers_fdu.training.loop import TrainingLoop
from diffusers_fdu.training.memory import Footprint
from diffusers_fdu.training.objective import Objective

from . import denoisers
from .denoisers import Size
from .lines import Skipped
from .measuring import GIB, free_bytes, wait
from .usual_loop import UsualConfig, UsualLoop

ROWS = 8  # of a buffer
RATE = 1e-6  # random weights diverge at the usual rates
MARGIN = 1.1  # between an estimate and what must be free
Look = Callable[[], Any]


def half(device: str) -> torch.dtype:
    """The dtype of frozen weights: bfloat16 on a GPU, float32 on the CPU."""
    return torch.bfloat16 if device == "cuda" else torch.float32


class Needs(NamedTuple):
    """Bytes of a training's parts, as the library estimates them."""

    denoiser: int
    adapter: int
    activations: int
    workspaces: int = 0


@dataclass
class Ours:
    """A denoiser and a replay buffer of random rows.

    Args:
        size: of the denoiser.
        device: where it is.
        model: the denoiser.
        buffer: rows to unlearn and to retain.
    """

    size: Size
    device: str
    model: nn.Module
    buffer: ReplayBuffer
    _footprints: dict[str, Footprint] = field(default_factory=dict)

    @classmethod
    def build(cls, size: Size, device: str, four_bit: bool = False) -> Ours:
        """Make both; the linear layers in 4 bits if asked."""
        torch.manual_seed(0)
        dtype = half(device)
        model = denoisers.denoiser(size, device, dtype)
        if four_bit:
            denoisers.quantize(model)
        return cls(size, device, model, random_buffer(size, dtype))

    def settings(self, batch: int, steps: int, **performance: Any) -> Settings:
        """Options of a training of so many steps, with so many rows of each role in one."""
        config = TrainConfig(
            steps=steps,
            batch_size=batch,
            learning_rate=RATE,
            early_stop=0.0,
            target_modules=self.size.modules,
        )
        explicit = {
            "micro_batch_size": batch,
            "gradient_checkpointing": False,
            "offload": False,
            **performance,
        }
        return Settings(config, DataConfig(), PerformanceConfig(**explicit))

    def estimate(self, settings: Settings) -> Needs:
        """What the library says of the memory.

        Raises:
            Skipped: if not one row fits.
        """
        entries = self.buffer.entries("unlearn")
        device, dtype = torch.device(self.device), half(self.device)
        calls = [self.buffer.calls(entries[:n], device, dtype)[0].inputs for n in (1, 2)]
        chosen = settings.performance
        size = chosen.micro_batch(settings.train.batch_size)
        pipe, key = SimpleNamespace(components={}), chosen.mixed_precision
        if key not in self._footprints:
            self._footprints[key] = Footprint(pipe, self.model, settings, calls)
        found = self._footprints[key].estimate(
            size, 1, chosen.gradient_checkpointing is True, False
        )
        if found is None:
            raise Skipped("not one row fits")
        parts = found.parts
        return Needs(
            parts["denoiser"],
            parts["adapter, its gradients and moments"],
            parts["a micro-batch"],
            parts["workspaces"],
        )

    def train(self, settings: Settings, look: Look) -> None:
        """Train an adapter, and take it off again.

        Args:
            settings: see `settings`.
            look: called after every step, which has waited for the device.
        """
        model, config = self.model, settings.train
        before = adapters.snapshot(model)
        lora = adapters.lora_config(model, config.rank, None, self.size.modules)
        try:
            parameters = adapters.attach(model, "benchmark", lora, 0)
            sampler = Sampler(model, self.buffer, config.batch_size, 0)
            distances = [torch.ones(4, device=self.device)]
            objective = Objective(DivergenceLoss("kl", 1.0), distances, 1.0)
            hooks = Hooks(lambda record: look(), progress=False)
            TrainingLoop(model, parameters, sampler, objective, settings, hooks).train()
        finally:
            adapters.remove(model, "benchmark", before)


def check_free(device: str, needed: float) -> None:
    """Refuse what the device's memory does not hold.

    Raises:
        Skipped: with what is needed and what is free.
    """
    free = free_bytes(device)
    if MARGIN * needed > free:
        raise Skipped(f"needs about {needed / GIB:.0f} GiB more, {free / GIB:.0f} are free")


def random_buffer(size: Size, dtype: torch.dtype) -> ReplayBuffer:
    """Random rows, as many to unlearn as to retain."""
    buffer = ReplayBuffer(dtype)
    if size.unet is None:
        # Rotary positions, the same for every row.
        text = torch.zeros(size.tokens, 3)
        buffer.constants = {"txt_ids": text, "img_ids": torch.zeros(size.patches, 3)}
    for i in range(ROWS):
        state, text_leaves = denoisers.row(size, dtype)
        where, text_id = buffer.add_state(state), buffer.add_text(str(i), text_leaves)
        answer = buffer.add_prediction(torch.randn(answer_shape(size)))
        buffer.add_row("unlearn" if i % 2 else "retain", where, text_id, answer)
    return buffer


def answer_shape(size: Size) -> tuple[int, ...]:
    """Of one row's prediction."""
    if size.unet is None:
        return size.patches, size.transformer["in_channels"]
    side = size.unet["sample_size"]
    return 4, side, side


def usual(size: Size, device: str, batch: int) -> UsualLoop:
    """The usual loop, ready to step: the student in float32, on a GPU under autocast.

    Raises:
        Skipped: if it does not fit, by what the library's estimate says of the activations.
    """
    torch.manual_seed(0)
    dtype = half(device)
    encoders = denoisers.text_encoders(size, device, dtype)
    pipe = SimpleNamespace(
        unet=denoisers.denoiser(size, device, torch.float32),
        vae=denoisers.autoencoder(size, device, dtype),
        text_encoder=encoders[0],
        scheduler=DDIMScheduler(),
    )
    ours = Ours(size, device, pipe.unet, random_buffer(size, dtype))
    precision = "bf16" if device == "cuda" else "no"
    estimate = ours.estimate(ours.settings(batch, 1, mixed_precision=precision))
    # The teacher is copied before it is cast; then autocast keeps a copy of what it casts.
    check_free(device, estimate.activations + estimate.denoiser)
    config = UsualConfig(
        batch_size=batch,
        accumulation=1,
        learning_rate=RATE,
        autocast=dtype if device == "cuda" else None,
    )
    loop = UsualLoop(
        pipe, config, encode=lambda captions: denoisers.encode(encoders, len(captions), device)
    )
    images = torch.rand(ROWS, 3, size.image, size.image) * 2 - 1
    loop.start(images, [("a target", "an anchor")] * ROWS)
    return loop


def loss_seconds(size: Size, device: str, batch: int) -> float:
    """Forward and backward of both losses alone, at these shapes."""
    shape = (batch, *answer_shape(size))
    pred = torch.randn(shape, device=device, dtype=half(device), requires_grad=True)
    target = torch.randn(shape, device=device)
    loss = DivergenceLoss("kl", 1.0)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(2):
            loss(pred, target).backward()
        wait(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@contextmanager
def channels_last(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """A model's convolutions in the other memory format, for a while."""
    if enabled:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if enabled:
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
