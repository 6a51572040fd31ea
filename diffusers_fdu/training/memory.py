"""How much memory a training takes, phase by phase.

While pictures are recorded or drawn, the device holds all models' weights and what one pass of
the denoiser (or the decoder) needs. While it trains, it holds the denoiser's weights; the
adapter's weights, their gradients and AdamW's two moments; and what one micro-batch takes forward
and backward. Both passes are traced for one row and for two (`memory_trace`), and grow linearly.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..adapters import lora as adapters
from ..adapters.target_modules import input_width
from ..data.plan import RunContext
from ..pipelines.denoiser import sample_name
from ..pipelines.offload import is_offloaded, is_streamed, onloaded, placement, streamed
from ..pipelines.recorder import Recorder, preserve_pipeline_state
from ..settings import Settings
from ..utils.nested import unflatten
from .acceleration import can_set_aside, checkpointed, precision, without_cudnn_attention
from .agreement import SIZE, starts_in_closed_form
from .memory_trace import denoiser_pass, peak_bytes, twin, weight_bytes

GIB = 2**30
COPIES = 4  # of a trained weight: itself, its gradient and two moments
WORKSPACE = 64 * 2**20
"""On CUDA: cuBLAS keeps 32 MiB on a Hopper for each thread that uses it, forward and backward."""
MOMENTS = 5 * 8  # bytes of the closed form's float64 matrices for each pair of a text's dimensions
KEPT = 16
"""Bytes, more than twice what any family takes in float32: `pytest -k bound`."""
GUIDED = 2  # rows that a guided pipeline asks about for each picture


@dataclass(frozen=True)
class Estimate:
    """Peaks of a training on its device, in bytes; `print` shows them.

    `closed_form` is that of the adapter's start, `drawing` that of one picture, None if the
    decoder is not known, and `parts` are what `training` is made of.
    """

    recording: int
    closed_form: int
    training: int
    drawing: int | None
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most that `unlearn` takes."""
        return max(self.recording, self.closed_form, self.training)

    def __str__(self) -> str:
        lines = [f"recording: {self.recording / GIB:.2f} GiB"]
        lines += [f"closed-form start: {self.closed_form / GIB:.2f} GiB"]
        lines += [f"training: {self.training / GIB:.2f} GiB"]
        lines += [f"  {name}: {size / GIB:.3f} GiB" for name, size in self.parts.items() if size]
        if self.drawing is not None:
            lines += [f"drawing a picture: {self.drawing / GIB:.2f} GiB"]
        return "\n".join(lines)


class Footprint:
    """What a pipe's models and the passes of its denoiser take; the pipe stays as it is.

    `calls` are inputs of the denoiser for one prompt, and for two.
    """

    def __init__(
        self, pipe: Any, model: nn.Module, settings: Settings, calls: Sequence[dict[str, Any]]
    ) -> None:
        train = settings.train
        self.pipe, self.model, self.settings, self.calls = pipe, model, settings, calls
        self.device, self.streams = placement(model).device, is_streamed(model)
        self.lora = adapters.lora_config(model, train.rank, train.alpha, train.target_modules)
        self.width = input_width(model, sorted(self.lora.target_modules or ()))
        self.roles = settings.roles
        self.rows = len(calls[0][sample_name(model)])  # of one prompt
        # Of a streamed denoiser one layer's own weights at a time are on the device.
        layers = model.modules() if self.streams else [model]
        self.denoiser = max(weight_bytes(layer, recurse=not self.streams) for layer in layers)
        may_leave = settings.data.defence is None  # its searches need the text encoders
        weights = _weights(pipe, model, self.denoiser, may_leave)
        self.staying, self.leaving, self.all_weights = weights
        modules = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
        self.largest = max([self.denoiser, *map(weight_bytes, modules)])
        can_offload = hasattr(pipe, "enable_model_cpu_offload")
        self.can_take_turns = can_offload and all(map(can_set_aside, modules))
        self._twin: tuple[nn.Module, list[nn.Parameter]] | None = None
        self._traced: dict[tuple[bool, bool], tuple[int, int] | None] = {}

    def estimate(
        self, size: int, record: int, checkpoints: bool, offload: bool, turns: bool = False
    ) -> Estimate | None:
        """The memory of a training with these choices; None if a pass could not be traced.

        Args:
            size: rows of each role in one pass.
            record: pictures recorded at once.
            checkpoints: whether gradients are checkpointed.
            offload: whether text encoders and autoencoder leave the device while it trains.
            turns: whether the models are on the device one at a time while it records.
        """
        rows = size * self.roles * self.rows
        step, forward = self.pass_bytes(rows, checkpoints), self.pass_bytes(rows, trains=False)
        drawn = self.pass_bytes(GUIDED * record * self.rows, trains=False)
        checked = self.pass_bytes(min(SIZE, size * self.roles) * self.rows, checkpoints)
        if step is None or forward is None or drawn is None or checked is None:
            return None
        workspace = WORKSPACE if self.device.type == "cuda" else 0
        parts = {
            "denoiser": self.denoiser,
            "adapter, its gradients and moments": self.adapter,
            "a micro-batch": step,
            "text encoders and autoencoder": self.staying + (0 if offload else self.leaving),
            "workspaces": workspace,
        }
        training = sum(parts.values())
        # The closed form asks as many rows at once as a step, forward alone.
        start = training - step + forward + MOMENTS * self.width**2
        recording = (self.largest if turns else self.all_weights) + drawn + workspace
        if starts_in_closed_form(self.settings, self.model):
            # Between two stages of recording gradients are computed to see whether to stop.
            recording = max(recording, training - step + checked)
        besides = self.all_weights + self.adapter + workspace
        drawing = None if self.decoder is None else besides + self.decoder
        return Estimate(recording, start, training, drawing, parts)

    def bound(self, batch_size: int) -> float:
        """Bytes that no training of so many rows of each role takes, without tracing it.

        Every layer's outputs at every position of the longest input, `KEPT` bytes for each.
        """
        inputs = [v for v in tree_leaves(self.calls[0]) if torch.is_tensor(v) and v.dim() > 2]
        # Channels come first in latents, (B, C, H, W), and last in packed patches, (B, L, C).
        # Divided by its smallest dimension, a row's size is at least its number of positions.
        positions = [math.prod(v.shape[1:]) / min(v.shape[1:]) for v in inputs]
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        layers: list[Any] = [m for m in self.model.modules() if isinstance(m, kinds)]
        width = sum(getattr(m, "out_features", 0) or m.out_channels for m in layers)
        outputs = max(positions, default=math.inf) * width
        return self.all_weights + KEPT * self.roles * batch_size * self.rows * outputs

    @cached_property
    def adapter(self) -> int:
        """Bytes of the adapter's weights, gradients and moments."""
        with self._adapted() as (_, trained):
            return COPIES * sum(p.numel() * p.element_size() for p in trained)

    @cached_property
    def decoder(self) -> int | None:
        """What one picture's decoding takes; None if this pipe's decoder is not known."""
        vae: Any = getattr(self.pipe, "vae", None)
        sample = self.calls[0][sample_name(self.model)]
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if not torch.is_tensor(sample) or sample.dim() != 4 or sample.shape[1] != channels:
            return None
        decoder: Any = twin(vae)
        with torch.no_grad():
            return peak_bytes(decoder, lambda x: decoder.decode(x), sample[:1].to(vae.dtype))

    def pass_bytes(self, rows: int, checkpoints: bool = False, trains: bool = True) -> int | None:
        """Bytes of a pass of so many rows, forward and, if it trains, backward."""
        key = trains, checkpoints
        if key not in self._traced:
            self._traced[key] = self._trace(trains, checkpoints)
        traced = self._traced[key]
        return None if traced is None else traced[0] + rows * traced[1]

    def _trace(self, trains: bool, checkpoints: bool) -> tuple[int, int] | None:
        """Bytes of a pass whatever its rows, and of each row; None if it cannot be traced."""
        autocast, _ = precision(self.model, self.settings.performance.mixed_precision)
        with self._adapted() as (model, trained), checkpointed(model, checkpoints):
            function = denoiser_pass(model, autocast, trained if trains else ())
            peaks = [peak_bytes(model, function, call) for call in self.calls]
        one, two = peaks
        if one is None or two is None:
            return None
        # What does not grow with the rows, such as a table of positions, is there once. The calls
        # hold one prompt and two, each of `self.rows` rows.
        constant = max(0, 2 * one - two) + (self._held_by_autograd(checkpoints) if trains else 0)
        return constant, max(0, two - one) // self.rows

    def _held_by_autograd(self, checkpoints: bool) -> int:
        """Streamed weights that stay for the backward pass, although they come layer by layer.

        The trace does not see them: the twin's weights are there anyway, and do not count.
        """
        if not self.streams:
            return 0
        if not checkpoints:
            return sum(weight_bytes(layer, recurse=False) for layer in self.model.modules())
        # A checkpointed block is computed again for its gradient, so one block's stay at a time:
        # the members of the innermost lists of modules.
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        blocks = [block for members in lists for block in members if not _has_blocks(block)]
        return max(map(weight_bytes, blocks), default=0)

    @without_cudnn_attention()
    def seconds(self, checkpoints: bool) -> tuple[float, float]:
        """Seconds of a row's forward pass, and of its forward and backward pass, run for real."""
        autocast, _ = precision(self.model, self.settings.performance.mixed_precision)
        inputs = self.calls[-1]
        rows = len(inputs[sample_name(self.model)])
        self._twin = None  # what was traced may hold fake tensors

        def now() -> float:
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            return time.monotonic()

        with self._adapted() as (model, trained), checkpointed(model, checkpoints):
            with streamed(model, self.device, self.streams):
                forward = denoiser_pass(model, autocast)
                both = denoiser_pass(model, autocast, trained)
                if self.device.type != "cpu":
                    both(inputs)  # the first call loads kernels
                started = now()
                forward(inputs)
                between = now()
                both(inputs)
                return (between - started) / rows, (now() - between) / rows

    @contextmanager
    def _adapted(self) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
        """A twin of the denoiser with a new adapter on it, and the adapter's weights."""
        flags = adapters.snapshot(self.model)
        try:
            with onloaded(self.model), torch.inference_mode(False):
                # A streamed denoiser's weights are other tensors every time they are brought.
                if self._twin is None or self.streams:
                    model = twin(self.model)
                    trained = adapters.attach(model, "fdu-estimate", self.lora, seed=0)
                    autocast, _ = precision(model, self.settings.performance.mixed_precision)
                    # The first call may fill caches, such as tables of positions.
                    peak_bytes(model, denoiser_pass(model, autocast), self.calls[0])
                    self._twin = model, trained
                model, trained = self._twin
                # The twin shares the frozen weights, whose flags the last use gave back.
                model.requires_grad_(False)
                for parameter in trained:
                    parameter.requires_grad_(True)
                yield model, trained
        finally:
            adapters.restore_flags(self.model, flags)


def footprint(context: RunContext) -> Footprint:
    """The footprint of a pipe, whose denoiser is asked about one prompt and about two."""
    with preserve_pipeline_state(context.pipe):
        recorder = Recorder(context.pipe, context.pipeline_kwargs)
        calls = [unflatten(recorder.first_call(["a"] * count).inputs) for count in (1, 2)]
    return Footprint(context.pipe, context.model, context.settings, calls)


def _has_blocks(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) for part in module.modules())


def _weights(pipe: Any, model: nn.Module, denoiser: int, may_leave: bool) -> tuple[int, int, int]:
    """Weights besides the denoiser's that stay and that leave, and all while recording."""
    components = getattr(pipe, "components", {}).values()
    others = [m for m in components if isinstance(m, nn.Module) and m is not model]
    device = placement(model).device
    staying = leaving = 0
    hooked = [denoiser] if is_offloaded(model) else []  # one of these at a time
    for module in others:
        size = weight_bytes(module)
        if is_offloaded(module) or is_streamed(module):
            hooked.append(0 if is_streamed(module) else size)
        elif next(module.parameters()).device != device:
            continue
        elif may_leave and can_set_aside(module):
            leaving += size
        else:
            staying += size
    together = max(hooked, default=0) + (0 if is_offloaded(model) else denoiser)
    return staying, leaving, together + staying + leaving
