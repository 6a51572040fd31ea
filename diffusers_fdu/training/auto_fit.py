"""Choose how a training uses the memory that its device has.

A step's rows stay the same whatever is chosen, and with them the adapter, within rounding: they
go through the denoiser in micro-batches, the largest whose estimate fits. What costs the least
time comes first: text encoders and autoencoder on the CPU while training, a copy there and back;
fewer rows at once, nearly nothing once a device is busy; checkpointing, one more forward pass.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress, product
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ..config import Auto, PerformanceConfig
from ..data.plan import RunContext
from ..pipelines.offload import placement
from ..pipelines.recorder import BATCH, STEPS
from ..utils.micro_batches import HELP, is_out_of_memory
from .acceleration import can_checkpoint
from .memory import GIB, GUIDED, Estimate, Footprint, footprint
from .memory_trace import weight_bytes

SHARE = 0.85
"""Of the free memory that an estimate may take: the rest is for what no trace sees, such as
fragmentation and cuDNN's workspaces."""
MEAN_SHARE = 0.75  # of the most steps, that recorded runs have on average
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """What was chosen: options with a value for every "auto".

    The training may count on `available` bytes. Its estimate is None if there is so much that
    nothing was traced, and `seconds` is the time that recording and all steps take at most.
    """

    performance: PerformanceConfig
    available: int
    estimate: Estimate | None = None
    offloads_recording: bool = False
    seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the estimate is within `SHARE` of the memory."""
        return self.estimate is None or self.estimate.peak <= SHARE * self.available

    def line(self, pipe: Any, batch_size: int) -> str:
        """The choice in one line, such as "StableDiffusionXL on 12 GiB: micro-batch 4, ..."."""
        chosen = self.performance
        name = type(pipe).__name__.removesuffix("Pipeline")
        parts = [f"micro-batch {chosen.micro_batch(batch_size)} of {batch_size}"]
        parts += ["checkpointed"] if chosen.gradient_checkpointing is True else []
        parts += ["text encoders set aside"] if chosen.offload else []
        parts += [f"{chosen.record_batch} recorded at once"]
        parts += ["models taking turns"] if self.offloads_recording else []
        parts += [f"about {self.estimate.peak / GIB:.1f} GiB"] if self.estimate else []
        if self.seconds is not None:
            is_long = self.seconds > 90
            duration = f"{self.seconds / 60:.0f} min" if is_long else f"{self.seconds:.0f} s"
            parts += [f"at most about {duration} here"]
        return f"{name} on {self.available / GIB:.0f} GiB: {', '.join(parts)}"


@contextmanager
def fitted(context: RunContext, pictures: int = 0, tells: bool = True) -> Iterator[RunContext]:
    """Yield the context with a value for every "auto", see `fit_together`.

    Meanwhile the denoiser is in evaluation mode, gradients are on, and the models take turns on
    the device if they have to. `tells` says whether the choice is shown.
    """
    fit = fit_together(context, pictures if context.progress else 0)
    if tells and context.progress:
        print(fit.line(context.pipe, context.settings.train.batch_size), file=sys.stderr)
    if tells and fit.estimate is not None and not fit.fits:
        message = (
            f"the training takes about {fit.estimate.peak / GIB:.1f} GiB, which may be more than "
            f"the {fit.available / GIB:.1f} GiB here: if it runs out of memory, {HELP}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    context.model.eval()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        model_offload(context.pipe, placement(context.model).device, fit.offloads_recording),
    ):
        yield replace(context, settings=context.settings._replace(performance=fit.performance))


def fit_together(context: RunContext, pictures: int = 0, traces: bool = False) -> Fit:
    """Values for what `PerformanceConfig` leaves to the machine.

    They are the same on all processes that share a denoiser. `pictures` is how many will be
    recorded, and 0 for no measurement of the time. With `traces` the memory is estimated even
    where there is plenty.
    """
    options, train = context.settings.performance, context.settings.train
    available = available_memory(context.pipe, placement(context.model).device)
    measured = footprint(context)
    if not traces and measured.bound(train.batch_size) < SHARE * available:
        size, offload = options.micro_batch(train.batch_size), options.offload is True
        record = BATCH if options.record_batch == "auto" else options.record_batch
        chosen = replace(options, micro_batch_size=size, record_batch=record, offload=offload)
        fit = Fit(chosen, available)
    else:
        fit = choose(measured, available)
        if pictures:
            steps = context.pipeline_kwargs.get("num_inference_steps", STEPS)
            fit = with_time(fit, measured, pictures * steps)
    if options.shard:
        fit = min(context.processes.gather([fit]), key=lambda fit: fit.available)
    return fit


def choose(measured: Footprint, available: int) -> Fit:
    """The fastest options whose estimate fits these bytes; the smallest if none does."""
    options, budget = measured.settings.performance, SHARE * available
    size = options.micro_batch(measured.settings.train.batch_size)
    sizes = _halvings(size) if options.micro_batch_size == "auto" else [size]
    record_batches = _halvings(BATCH) if options.record_batch == "auto" else [options.record_batch]
    checkpoints = _choices(options.gradient_checkpointing, can_checkpoint(measured.model))
    offloads = _choices(options.offload, measured.leaving > 0)
    choices = list(product(checkpoints, sizes, offloads))

    def trains(checkpoint: bool, size: int, offload: bool) -> bool:
        estimate = measured.estimate(size, 1, checkpoint, offload)
        return estimate is not None and max(estimate.training, estimate.closed_form) <= budget

    def records(count: int, turns: bool = False) -> bool:
        estimate = measured.estimate(1, count, checkpoint, offload, turns)
        return estimate is not None and estimate.recording <= budget

    checkpoint, size, offload = next((c for c in choices if trains(*c)), choices[-1])
    record_batch = next(filter(records, record_batches), record_batches[-1])
    turns = not records(record_batch) and options.offload == "auto" and measured.can_take_turns
    if turns:
        record_batch = next((n for n in record_batches if records(n, turns)), record_batches[-1])
    offload = offload or turns
    estimate = measured.estimate(size, record_batch, checkpoint, offload, turns)
    chosen = replace(options, micro_batch_size=size, record_batch=record_batch, offload=offload)
    if checkpoint:  # else "auto" stays: what runs out of memory after all may still use it
        chosen = replace(chosen, gradient_checkpointing=True)
    return Fit(chosen, available, estimate, turns)


def _choices(option: bool | Auto, is_possible: bool) -> list[bool]:
    if option != "auto":
        return [option]
    return [False, True] if is_possible else [False]


def _halvings(size: int) -> list[int]:
    """A size, its half, and so on down to 1."""
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def with_time(fit: Fit, measured: Footprint, recorded_steps: int) -> Fit:
    """The fit with the time of so many recorded and all trained steps, by one pass of few rows."""
    train = measured.settings.train
    try:
        forward, both = measured.seconds(fit.performance.gradient_checkpointing is True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return fit
        raise
    recording = MEAN_SHARE * recorded_steps * GUIDED * forward
    training = train.steps * train.batch_size * measured.roles * both
    return replace(fit, seconds=measured.rows * (recording + training))


@contextmanager
def model_offload(pipe: Any, device: torch.device, enabled: bool) -> Iterator[None]:
    """Diffusers' model offloading for a while: each model is on the device while it is called."""
    if not enabled:
        yield
        return
    try:
        pipe.enable_model_cpu_offload(device=device)
        yield
    finally:
        pipe.remove_all_hooks()
        pipe.to(device)


def available_memory(pipe: Any, device: torch.device) -> int:
    """Bytes that are free, or that hold the pipe's own weights."""
    modules = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
    firsts = [next(module.parameters(), None) for module in modules]
    is_here = [first is not None and first.device.type == device.type for first in firsts]
    return free_memory(device) + sum(map(weight_bytes, compress(modules, is_here)))


def free_memory(device: torch.device) -> int:
    """Bytes that PyTorch could still allocate on a device.

    On the CPU that is bounded by the machine, by the container's limit (cgroup v2), and by the
    process's limit of its address space (`ulimit -v`); on CUDA by what other processes take and
    by `torch.cuda.set_per_process_memory_fraction`.
    """
    if device.type == "cpu":
        limits = (psutil.virtual_memory().available, _container(), _address_space())
        return max(0, int(min(limits)))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        cached = torch.cuda.memory_reserved(device) - allocated
        share = torch.cuda.get_per_process_memory_fraction(device)
        return max(0, min(free + cached, int(share * total) - allocated))
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.accelerator.get_memory_info(device)[0]


def _container() -> float:
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max" is no limit
        return float("inf")
    stat = dict(line.split() for line in lines)
    return limit - used + int(stat.get("inactive_file", 0))  # files that were read can go


def _address_space() -> float:
    process: Any = psutil.Process()
    if not hasattr(process, "rlimit"):  # Linux alone has it
        return float("inf")
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    return float("inf") if limit < 0 else limit - process.memory_info().vms
