"""What `diffusers-fdu unlearn` does: one adapter for all concepts, or one for each.

Started by `accelerate launch` or `torchrun`, the processes train one adapter together, or share a
list of concepts. Told to shard the denoiser (FSDP), they train every adapter together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env

from ..adapters import lora as adapters
from ..adapters.loading import Format, check_format
from ..data.concepts import Concept
from ..training.callbacks import Callback
from ..training.tracking import tracked
from ..unlearner import FDUnlearner
from ..utils.distributed import Processes
from ..utils.io import writable_folder
from .inputs import load_pipeline
from .jobs import Job, own_jobs

CHECKPOINTS, LOGS = "checkpoints", "logs"  # folders beside the adapter


@dataclass(frozen=True)
class Order:
    """How adapters are to be trained.

    Args:
        model: see `load_pipeline`.
        device: where it runs.
        dtype: of the pipeline.
        pipeline_kwargs: of the recorded runs.
        options: of `FDUnlearner`.
        f: the divergence.
        format: of the files.
        output_dir: where they go.
        checkpoint_every: steps between two checkpoints; 0: none are kept.
        resume: go on from the last checkpoint.
        log_with: see `tracked`.
        component: see `FDUnlearner`.
        say: shows a line.
    """

    model: str
    device: str
    dtype: str
    pipeline_kwargs: dict[str, Any]
    options: dict[str, Any]
    f: str
    format: Format
    output_dir: Path
    checkpoint_every: int = 0
    resume: bool = False
    log_with: Sequence[str] = field(default_factory=list)
    component: str | None = None
    say: Callable[[str], None] = print


def launched() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_precision() -> str | None:
    """The mixed precision that `accelerate launch` was told; None if it was told none."""
    found = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return found if found in ("fp16", "bf16") else None


def launched_sharding() -> bool:
    """Whether several processes were told to shard by `accelerate launch`.

    Raises:
        ValueError: if they were told FSDP 1.
    """
    if not (launched() and parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP 1 cannot leave the adapter whole: set fsdp_version to 2")
    return True


def unlearn_together(order: Order, found: Sequence[Concept]) -> FDUnlearner:
    """One adapter for all concepts."""
    worker = _worker(order, _pipe(order), together=launched())
    if worker.processes.is_main:
        writable_folder(order.output_dir)
    _train(order, worker, found, order.output_dir)
    return worker


def unlearn_each(order: Order, jobs: Sequence[Job]) -> list[Path]:
    """An adapter for each concept that has none yet; every process takes its share.

    Processes that shard the denoiser go through the list together.

    Returns:
        The folders that this process wrote.

    Raises:
        ValueError: after the others were trained, with the concepts that were not, and why.
    """
    together = launched_sharding()
    processes = Processes(together=launched())
    share = (0, 1) if together else (processes.rank, processes.count)
    own = own_jobs(jobs, order.output_dir, order.f, *share)
    done = len(jobs) - len(own_jobs(jobs, order.output_dir, order.f, 0, 1))
    if done and processes.is_main:
        order.say(f"{done} of {len(jobs)} concepts are done already")
    writable_folder(order.output_dir)
    pipe = _pipe(order) if own else None
    written, failed = [], []
    for job in own:
        folder = writable_folder(order.output_dir / job.name)
        worker = _worker(order, pipe, together)
        before = adapters.snapshot(worker.model)
        try:
            _train(order, worker, [job.concept], folder)
        except (ValueError, ArithmeticError) as error:
            failed.append(f"{job.name}: {error}")
            order.say(failed[-1])
            continue
        assert worker.adapter_name is not None
        adapters.remove(worker.model, worker.adapter_name, before)
        if not worker.processes.is_main:
            continue
        written.append(folder)
        order.say(f"{job.name}: {len(worker.history)} steps, written to {folder}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(own)} concepts failed: {'; '.join(failed)}")
    return written


def _pipe(order: Order) -> Any:
    pipe = load_pipeline(order.model, order.device, order.dtype, streams=launched_sharding())
    check_format(pipe, order.format)
    return pipe


def _worker(order: Order, pipe: Any, together: bool) -> FDUnlearner:
    machine = {"data_parallel": together, "shard": together and launched_sharding()}
    kwargs, component = order.pipeline_kwargs, order.component
    return FDUnlearner(pipe, kwargs, component=component, **order.options, **machine)


def _train(order: Order, worker: FDUnlearner, found: Sequence[Concept], folder: Path) -> None:
    checkpoints = folder / CHECKPOINTS if order.checkpoint_every else None
    with _logged(order, worker, folder) as callback:
        worker.unlearn(
            list(found),
            f=order.f,
            callback=callback,
            checkpoint_dir=checkpoints,
            checkpoint_every=order.checkpoint_every or 1,
            resume_from_checkpoint=order.resume,
        )
    worker.save(folder, order.format)
    if checkpoints is not None and worker.processes.is_main:
        shutil.rmtree(checkpoints, ignore_errors=True)


@contextmanager
def _logged(order: Order, worker: FDUnlearner, folder: Path) -> Iterator[Callback | None]:
    if not order.log_with or not worker.processes.is_main:
        yield None
        return
    with tracked(order.log_with, folder / LOGS, vars(worker.config)) as callback:
        yield callback
