"""Choose how a training uses the memory that its device has.

A step's rows stay the same whatever is chosen, and with them the adapter, within rounding: they
go through the denoiser in micro-batches, the largest whose estimate fits. The order of preference
follows what each costs in time: nothing; text encoders and autoencoder on the CPU while training,
a copy there and back; fewer rows at once, as good as nothing once a device is busy; gradient
checkpointing, one more forward pass.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ..config import Auto, PerformanceConfig
from ..data.plan import RunContext
from ..pipelines.offload import placement
from ..pipelines.recorder import BATCH, STEPS
from ..settings import Settings
from ..utils.micro_batches import HELP, is_out_of_memory
from .acceleration import can_checkpoint
from .estimate import GIB, Estimate
from .memory import GUIDED, Footprint, footprint, weight_bytes

SHARE = 0.85
"""Of the free memory that an estimate may take: the rest is for what no trace sees, such as
fragmentation and cuDNN's workspaces."""
MEAN_SHARE = 0.75  # of the most steps, that recorded runs have on average
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """What was chosen.

    Args:
        performance: with a value for every "auto".
        available: bytes of the device that the training may count on.
        estimate: of its memory; None: there is so much that nothing was traced.
        offloads_recording: all models take turns on the device while recording.
        seconds: that recording and all steps take at most, as far as known.
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
        """The choice in one line, such as "StableDiffusionXL on 12 GB: micro-batch 4, ..."."""
        chosen = self.performance
        name = type(pipe).__name__.removesuffix("Pipeline")
        parts = [f"micro-batch {chosen.micro_batch(batch_size)} of {batch_size}"]
        parts += ["checkpointed"] if chosen.gradient_checkpointing is True else []
        parts += ["text encoders set aside"] if chosen.offload else []
        parts += [f"{chosen.record_batch} recorded at once"]
        parts += ["models taking turns"] if self.offloads_recording else []
        parts += [f"about {self.estimate.peak / GIB:.1f} GiB"] if self.estimate else []
        if self.seconds is not None:
            long = self.seconds > 90
            time = f"{self.seconds / 60:.0f} min" if long else f"{self.seconds:.0f} s"
            parts += [f"at most about {time} here"]
        return f"{name} on {self.available / GIB:.0f} GiB: {', '.join(parts)}"

    def shortage(self) -> str:
        """What to say if it does not fit."""
        assert self.estimate is not None
        return (
            f"the training takes about {self.estimate.peak / GIB:.1f} GiB, which may be more than "
            f"the {self.available / GIB:.1f} GiB here: if it runs out of memory, {HELP}"
        )


def timed(fit: Fit, measured: Footprint, asked: int) -> Fit:
    """With the time that the training takes at most, by one pass of a few rows.

    Args:
        fit: what was chosen.
        measured: the footprint that it was chosen by.
        asked: most steps of all recorded runs.
    """
    train, chosen = measured.settings.train, fit.performance
    try:
        forward, both = measured.seconds(chosen.gradient_checkpointing is True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fit
    recorded = MEAN_SHARE * asked * GUIDED * forward
    trained = train.steps * train.batch_size * measured.roles * both
    return replace(fit, seconds=measured.rows * (recorded + trained))


def available_memory(pipe: Any, device: torch.device) -> int:
    """Bytes that are free, or that hold the pipe's own weights."""
    modules = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
    own = sum(
        weight_bytes(module)
        for module in modules
        if any(True for _ in module.parameters())
        and next(module.parameters()).device.type == device.type
    )
    return free_memory(device) + own


def auto_fit(
    pipe: Any,
    model: nn.Module,
    settings: Settings,
    kwargs: dict[str, Any],
    pictures: int = 0,
    traces: bool = False,
) -> Fit:
    """Values for what `PerformanceConfig` leaves to the machine.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: of the training.
        kwargs: of the recorded runs, such as height and width.
        pictures: that will be recorded; 0: the time is not measured.
        traces: estimate the memory even where there is plenty.

    Raises:
        ValueError: see `footprint`.
    """
    available = available_memory(pipe, placement(model).device)
    measured = footprint(pipe, model, settings, kwargs)
    if not traces and measured.bound(settings.train.batch_size) < SHARE * available:
        chosen = settings.performance
        record = BATCH if chosen.record_batch == "auto" else chosen.record_batch
        size = chosen.micro_batch(settings.train.batch_size)
        offload = chosen.offload is True
        chosen = replace(chosen, micro_batch_size=size, record_batch=record, offload=offload)
        return Fit(chosen, available)
    fit = choose(measured, available)
    steps = kwargs.get("num_inference_steps", STEPS)
    return timed(fit, measured, pictures * steps) if pictures else fit


def fit_together(context: RunContext, pictures: int = 0, traces: bool = False) -> Fit:
    """`auto_fit` of a context; the same on all processes that share a denoiser."""
    pipe, settings, kwargs = context.pipe, context.settings, context.pipeline_kwargs
    fit = auto_fit(pipe, context.model, settings, kwargs, pictures, traces)
    if settings.performance.shard:
        fit = min(context.processes.gather([fit]), key=lambda fit: fit.available)
    return fit


def choose(measured: Footprint, available: int) -> Fit:
    """The fastest settings whose estimate fits; the smallest if none does.

    Args:
        measured: of the pipe.
        available: bytes on its device.
    """
    wanted, budget = measured.settings.performance, SHARE * available
    size = wanted.micro_batch(measured.settings.train.batch_size)
    sizes = _halvings(size) if wanted.micro_batch_size == "auto" else [size]
    records = _halvings(BATCH) if wanted.record_batch == "auto" else [wanted.record_batch]
    checkpoints = _choices(wanted.gradient_checkpointing, can_checkpoint(measured.model))
    offloads = _choices(wanted.offload, measured.leaving > 0)
    choices = list(product(checkpoints, sizes, offloads))

    def trains(checkpoint: bool, size: int, offload: bool) -> bool:
        found = measured.estimate(size, 1, checkpoint, offload)
        return found is not None and max(found.training, found.closed_form) <= budget

    def records_at_once(count: int, turns: bool = False) -> bool:
        found = measured.estimate(1, count, checkpoint, offload, turns)
        return found is not None and found.recording <= budget

    checkpoint, size, offload = next((c for c in choices if trains(*c)), choices[-1])
    record = next(filter(records_at_once, records), records[-1])
    turns = not records_at_once(record) and wanted.offload == "auto" and measured.can_take_turns
    if turns:
        record = next((n for n in records if records_at_once(n, turns)), records[-1])
    chosen = replace(
        wanted,
        micro_batch_size=size,
        record_batch=record,
        # "auto" stays where it was not needed: what runs out of memory after all may still use it.
        gradient_checkpointing=checkpoint or wanted.gradient_checkpointing,
        offload=offload or turns,
    )
    estimate = measured.estimate(size, record, checkpoint, offload or turns, turns)
    return Fit(chosen, available, estimate, turns)


def _choices(wanted: bool | Auto, is_possible: bool) -> list[bool]:
    if wanted == "auto":
        return [False, True] if is_possible else [False]
    return [wanted]


def _halvings(size: int) -> list[int]:
    """A size, its half, and so on down to 1."""
    found = [size]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return found


@contextmanager
def taking_turns(pipe: Any, device: torch.device, enabled: bool) -> Iterator[None]:
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


def free_memory(device: torch.device) -> int:
    """Bytes that PyTorch could still allocate on a device.

    On the CPU that is bounded by the machine, by the container's limit (cgroup v2), and by the
    process's limit of its address space (`ulimit -v`); on CUDA by what other processes take and
    by `torch.cuda.set_per_process_memory_fraction`.
    """
    if device.type == "cpu":
        found = (psutil.virtual_memory().available, _container(), _address_space())
        return max(0, int(min(found)))
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


@contextmanager
def fitted(context: RunContext, pictures: int = 0, tells: bool = True) -> Iterator[RunContext]:
    """The frozen model for a while, and the options with a value for every "auto".

    Args:
        context: with the options as they were given.
        pictures: most that will be recorded, for an estimate of the time; 0: none is made.
        tells: say what was chosen.
    """
    fit = fit_together(context, pictures if context.progress else 0)
    if tells and context.progress:
        print(fit.line(context.pipe, context.settings.train.batch_size), file=sys.stderr)
    if tells and not fit.fits:
        warnings.warn(fit.shortage(), RuntimeWarning, stacklevel=5)
    context.model.eval()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        taking_turns(context.pipe, placement(context.model).device, fit.offloads_recording),
    ):
        yield replace(context, settings=context.settings._replace(performance=fit.performance))
