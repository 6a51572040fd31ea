"""How much memory a training takes, phase by phase.

While pictures are recorded or drawn, the device holds all models' weights and what one pass of
the denoiser (or the decoder) needs. While it trains, it holds the denoiser's weights; the
adapter's weights, their gradients and AdamW's two moments; and what one micro-batch takes forward
and backward. Both passes are traced for one row and for two (`memory_trace`), and grow linearly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..adapters import lora as adapters
from ..adapters.target_modules import input_width
from ..pipelines.denoiser import sample_name
from ..pipelines.offload import is_offloaded, is_streamed, onloaded, placement, streamed
from ..pipelines.recorder import Recorder, preserve_pipeline_state
from ..settings import Settings
from ..utils.nested import unflatten
from .acceleration import can_set_aside, checkpointed, precision
from .agreement import SIZE, starts_in_closed_form
from .denoiser_pass import Pass, clocked
from .estimate import Estimate, Passes
from .gradients import without_cudnn_attention
from .identity import plain_tensors
from .memory_trace import peak_bytes, twin

STATES = 4  # weight, gradient and two moments
WORKSPACE = 64 * 2**20
"""On CUDA: cuBLAS keeps 32 MiB on a Hopper for each thread that uses it, forward and backward."""
MOMENTS = 5 * 8  # bytes of the closed form's float64 matrices for each pair of a text's dimensions
KEPT = 16
"""Bytes, more than twice what any family takes in float32: `pytest -k bound`."""
GUIDED = 2  # rows that a guided pipeline asks about for each picture


class Footprint:
    """What a pipe's models and the passes of its denoiser take; the pipe stays as it is.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: of the training; what `estimate` is told does not matter here.
        calls: inputs of the denoiser for one prompt, and for two.

    Raises:
        ValueError: see `lora_config`.
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
        self.rows = len(calls[0][sample_name(model)])
        parts = model.modules() if self.streams else [model]
        self.denoiser = max(weight_bytes(part, recurse=not self.streams) for part in parts)
        self.staying, self.leaving, self.whole = _weights(
            pipe, model, self.denoiser, settings.data.defence is None
        )
        modules = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
        self.largest = max([self.denoiser, *map(weight_bytes, modules)])
        self.can_take_turns = hasattr(pipe, "enable_model_cpu_offload") and all(
            map(can_set_aside, modules)
        )
        self._twin: tuple[nn.Module, list[nn.Parameter]] | None = None

    def estimate(
        self,
        micro_batch: int,
        record_batch: int,
        checkpoints: bool,
        offload: bool,
        turns: bool = False,
    ) -> Estimate | None:
        """The memory of a training with these choices; None: that cannot be told.

        Args:
            micro_batch: rows of each role in one pass.
            record_batch: pictures recorded at once.
            checkpoints: gradient checkpointing.
            offload: text encoders and autoencoder leave the device while it trains.
            turns: the models are on the device one at a time while pictures are recorded.
        """
        step = self.checkpointed if checkpoints else self.plain
        if step is None or self.inference is None:
            return None
        rows, workspace = micro_batch * self.roles * self.rows, self.workspace
        parts = {
            "denoiser": self.denoiser,
            "adapter, its gradients and moments": self.adapter,
            "a micro-batch": step(rows),
            "text encoders and autoencoder": self.staying + (0 if offload else self.leaving),
            "workspaces": workspace,
        }
        training = sum(parts.values())
        start = training - step(rows) + self.inference(rows) + MOMENTS * self.width**2
        weights = self.largest if turns else self.whole
        recording = weights + self.inference(GUIDED * record_batch * self.rows) + workspace
        if starts_in_closed_form(self.settings, self.model):
            asked = min(SIZE, micro_batch * self.roles) * self.rows
            recording = max(recording, training - step(rows) + step(asked))
        decoding = self.decoder
        drawing = None if decoding is None else self.whole + self.adapter + decoding + workspace
        return Estimate(recording, start, training, drawing, parts)

    def bound(self, batch_size: int) -> float:
        """Bytes that no training of so many rows of each role takes, without tracing it.

        Every layer's outputs at every position of the longest input, `KEPT` bytes for each.
        """
        leaves = [v for v in tree_leaves(self.calls[0]) if torch.is_tensor(v) and v.dim() > 2]
        places = max((math.prod(v.shape[1:]) / min(v.shape[1:]) for v in leaves), default=math.inf)
        linear = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        layers: list[Any] = [m for m in self.model.modules() if isinstance(m, linear)]
        width = sum(getattr(m, "out_features", 0) or m.out_channels for m in layers)
        return self.whole + KEPT * self.roles * batch_size * self.rows * places * width

    @property
    def workspace(self) -> int:
        """What libraries take besides PyTorch's own tensors."""
        return WORKSPACE if self.device.type == "cuda" else 0

    @cached_property
    def plain(self) -> Passes | None:
        """Forward and backward."""
        return self._passes(trains=True, checkpoints=False)

    @cached_property
    def checkpointed(self) -> Passes | None:
        """Forward and backward with gradient checkpointing."""
        return self._passes(trains=True, checkpoints=True)

    @cached_property
    def inference(self) -> Passes | None:
        """Forward alone."""
        return self._passes(trains=False, checkpoints=False)

    @cached_property
    def adapter(self) -> int:
        """The adapter's weights, gradients and moments."""
        with self.adapted() as (_, trained):
            return STATES * sum(p.numel() * p.element_size() for p in trained)

    @cached_property
    def decoder(self) -> int | None:
        """What one picture's decoding takes; None: this pipe's decoder is not known."""
        vae: Any = getattr(self.pipe, "vae", None)
        sample = self.calls[0][sample_name(self.model)]
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if not torch.is_tensor(sample) or sample.dim() != 4 or sample.shape[1] != channels:
            return None
        asked: Any = twin(vae)
        with torch.no_grad():
            return peak_bytes(asked, lambda latent: asked.decode(latent), sample[:1].to(vae.dtype))

    def _passes(self, trains: bool, checkpoints: bool) -> Passes | None:
        autocast, _ = precision(self.model, self.settings.performance.mixed_precision)
        with self.adapted() as (model, trained), checkpointed(model, checkpoints):
            function = Pass(model, autocast, trained if trains else ())
            peaks = [peak_bytes(model, function, call) for call in self.calls]
        found = [peak for peak in peaks if peak is not None]
        if len(found) < len(self.calls):
            return None
        one, two = found
        # What does not grow with the rows, such as a table of positions, is there once.
        once = max(0, 2 * one - two) + self._brought(trains, checkpoints)
        return Passes(once, max(0, two - one) // self.rows)

    def _brought(self, trains: bool, checkpoints: bool) -> int:
        """Weights that autograd holds on to although they are brought layer by layer."""
        if not (self.streams and trains):
            return 0
        if not checkpoints:
            return sum(weight_bytes(part, recurse=False) for part in self.model.modules())
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        blocks = [m for members in lists for m in members if not _has_blocks(m)]
        return max((weight_bytes(block) for block in blocks), default=0)

    @without_cudnn_attention()
    def seconds(self, checkpoints: bool) -> tuple[float, float]:
        """Seconds of a row's forward pass, and of its forward and backward pass, run for real.

        Args:
            checkpoints: gradient checkpointing.

        Raises:
            RuntimeError: if the memory runs out.
        """
        autocast, _ = precision(self.model, self.settings.performance.mixed_precision)
        inputs = self.calls[-1]
        rows = len(inputs[sample_name(self.model)])
        self._twin = None  # what was traced may hold fake tensors
        with self.adapted() as (model, trained), checkpointed(model, checkpoints):
            with streamed(model, self.device, self.streams):
                both = Pass(model, autocast, trained)
                if self.device.type != "cpu":
                    both(inputs)  # the first loads kernels
                forward = clocked(Pass(model, autocast), inputs, self.device)
                return forward / rows, clocked(both, inputs, self.device) / rows

    @contextmanager
    def adapted(self) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
        """A twin of the denoiser with a new adapter on it, and the adapter's weights."""
        before = adapters.snapshot(self.model)
        try:
            with onloaded(self.model), torch.inference_mode(False):
                if self._twin is None or self.streams:
                    self._twin = self._made()
                model, trained = self._twin
                model.requires_grad_(False)
                for parameter in trained:
                    parameter.requires_grad_(True)
                yield self._twin
        finally:
            adapters.restore_flags(self.model, before)

    def _made(self) -> tuple[nn.Module, list[nn.Parameter]]:
        model = twin(self.model)
        trained = adapters.attach(model, "fdu-estimate", self.lora, seed=0)
        autocast, _ = precision(model, self.settings.performance.mixed_precision)
        # The first call may fill caches, such as tables of positions.
        peak_bytes(model, Pass(model, autocast), self.calls[0])
        return model, trained


def footprint(
    pipe: Any, model: nn.Module, settings: Settings, kwargs: dict[str, Any]
) -> Footprint:
    """Of a pipe whose denoiser is asked about one prompt and about two.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: of the training.
        kwargs: of the recorded runs, such as height and width.

    Raises:
        ValueError: see `lora_config` and `Recorder`.
    """
    with preserve_pipeline_state(pipe):
        recorder = Recorder(pipe, kwargs)
        calls = [unflatten(recorder.first_call(["a"] * count).inputs) for count in (1, 2)]
    return Footprint(pipe, model, settings, calls)


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
    whole = max(hooked, default=0) + (0 if is_offloaded(model) else denoiser)
    return staying, leaving, whole + staying + leaving


def _has_blocks(module: nn.Module) -> bool:
    return any(isinstance(child, nn.ModuleList) for child in module.modules())


def weight_bytes(module: nn.Module, recurse: bool = True) -> int:
    """Bytes of a module's weights as they are stored, quantised or not."""
    tensors = (*module.parameters(recurse), *module.buffers(recurse))
    return sum(part.numel() * part.element_size() for t in tensors for part in plain_tensors(t))
