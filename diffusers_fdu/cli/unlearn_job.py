"""What `diffusers-fdu unlearn` does: one adapter for all concepts, or one for each.

Started by `accelerate launch` or `torchrun`, the processes train one adapter together, or share a
list of concepts. Told to shard the denoiser (FSDP), they train every adapter together.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from accelerate.utils import parse_flag_from_env

from ..adapters import lora as adapters
from ..adapters.loading import has_loader
from ..config import CheckpointConfig
from ..data.concepts import Concept, make_concepts
from ..divergences.choice import AutoDivergence
from ..divergences.profiles import divergence
from ..settings import check_names, option_names, settings
from ..training.callbacks import Callback
from ..training.tracking import check_trackers, tracked
from ..unlearner import FDUnlearner
from ..utils.distributed import Processes
from ..utils.io import writable_folder
from .concept_list import DETAILS, ListedConcept, make_concept, read_concepts, unfinished
from .options import named_options
from .pipeline import Placed, load_pipeline, resolve_placement, run_arguments
from .unlearn import UnlearnOptions

CHECKPOINTS, LOGS = "checkpoints", "logs"  # folders beside the adapter
RUN_NAMES = ("pipeline_kwargs", "component", "concept", "checkpoint_every", "log_with", "prefer")
"""What `--config` and `--set` say besides the options of a training."""
LAUNCHED = ("data_parallel", "shard")


@dataclass(frozen=True)
class UnlearnJob:
    """Adapters that are to be trained, and how.

    Args:
        given: the command's options.
        placed: where the pipeline runs.
        concepts: what one adapter is to forget; with `--concepts` an adapter for each.
        f: name of the divergence.
        options: of `FDUnlearner`: fields of its options, `pipeline_kwargs` and `component`.
        checkpoint_every: steps between two checkpoints; None: none are kept.
        log_with: see `tracked`.
    """

    given: UnlearnOptions
    placed: Placed
    concepts: Sequence[ListedConcept]
    f: str
    options: dict[str, Any]
    checkpoint_every: int | None
    log_with: Sequence[str]


def resolve_job(given: UnlearnOptions) -> UnlearnJob:
    """Refuse what can be refused before a model is loaded, and resolve the rest.

    Raises:
        ValueError, TypeError: for an option that is unknown or has a bad value.
    """
    explicit = {name: getattr(given, name) for name in ("rank", "steps", "seed")}
    explicit |= {"pipeline_kwargs": run_arguments(given.guidance_scale)}
    named = named_options(given, explicit, [*option_names(), *RUN_NAMES])
    for name in LAUNCHED:
        if name in named:
            raise ValueError(f"{name} is for `accelerate launch` to say: leave it out")
    run = {name: named.pop(name) for name in RUN_NAMES if name in named}
    every = run.get("checkpoint_every") or (CheckpointConfig.every if given.resume else None)
    if every is not None:
        CheckpointConfig(given.output_dir, every)
    log_with = run.get("log_with") or []
    log_with = [log_with] if isinstance(log_with, str) else log_with
    check_trackers(log_with)
    f = AutoDivergence(run.get("prefer", "balance")).f if given.f == "auto" else given.f
    options = {"mixed_precision": launched_precision() or "no", **named}
    settings(options)
    return UnlearnJob(
        given,
        resolve_placement(given.device, given.dtype),
        _concepts(given, run.get("concept") or {}),
        divergence(f).name,
        {
            "pipeline_kwargs": run_arguments(None, given.model) | run["pipeline_kwargs"],
            "component": run.get("component"),
            **options,
        },
        every,
        log_with,
    )


def _concepts(given: UnlearnOptions, details: dict[str, Any]) -> list[ListedConcept]:
    """The concepts that options name, or those of the list.

    Raises:
        ValueError: if both do, if anchors and targets do not fit, and for a bad concept.
    """
    targets = given.target or []
    anchors: Sequence[str | None] = given.anchor or [None]
    if (given.concepts is None) == (not targets):
        raise ValueError("pass --target or --concepts, one of them")
    check_names(details, DETAILS, "concept.")
    if given.concepts is not None:
        said = {"--anchor": given.anchor, "--kind": given.kind != "object", "concept": details}
        if any(said.values()):
            names = ", ".join(name for name, value in said.items() if value)
            raise ValueError(f"with --concepts the list says what {names} would")
        return read_concepts(given.concepts)
    if len(anchors) == 1:
        anchors = [*anchors] * len(targets)
    if len(anchors) != len(targets):
        raise ValueError(f"{len(targets)} targets and {len(anchors)} anchors: pass one for each")
    if details.get("aliases") and len(targets) > 1:
        raise ValueError("concept.aliases are for a single --target")
    entries = [
        {"target": target, "anchor": anchor, "kind": given.kind, **details}
        for target, anchor in zip(targets, anchors, strict=True)
    ]
    return [
        ListedConcept("", one) for one in make_concepts([make_concept(entry) for entry in entries])
    ]


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


def unlearn_together(job: UnlearnJob) -> None:
    """One adapter for all concepts."""
    folder = job.given.output_dir
    worker = _worker(job, _pipe(job), together=launched())
    if worker.processes.is_main:
        writable_folder(folder)
    _train(job, worker, [one.concept for one in job.concepts], folder)
    if not worker.processes.is_main:
        return
    first, last = worker.history[0], worker.history[-1]
    is_plain = has_loader(worker.pipe)
    call = "pipe.load_lora_weights(" if is_plain else "diffusers_fdu.load_unlearned(pipe, "
    typer.echo(
        f"{len(worker.history)} steps, divergence {first.divergence:.4g} -> "
        f"{last.divergence:.4g}; load it with {call}{str(folder)!r})"
    )


def unlearn_each(job: UnlearnJob) -> None:
    """An adapter for each concept that has none yet; every process takes its share.

    Processes that shard the denoiser go through the list together.

    Raises:
        ValueError: after the others were trained, with the concepts that were not, and why.
    """
    folder, together = job.given.output_dir, launched_sharding()
    processes = Processes(together=launched())
    share = (0, 1) if together else (processes.rank, processes.count)
    own = unfinished(job.concepts, folder, job.f, *share)
    done = len(job.concepts) - len(unfinished(job.concepts, folder, job.f))
    if done and processes.is_main:
        typer.echo(f"{done} of {len(job.concepts)} concepts are done already")
    writable_folder(folder)
    pipe = _pipe(job) if own else None
    failed = []
    for one in own:
        place = writable_folder(folder / one.name)
        worker = _worker(job, pipe, together)
        before = adapters.snapshot(worker.model)
        try:
            _train(job, worker, [one.concept], place)
        except (ValueError, ArithmeticError) as error:
            failed.append(f"{one.name}: {error}")
            typer.echo(failed[-1])
            continue
        adapters.remove(worker.model, str(worker.adapter_name), before)
        if worker.processes.is_main:
            typer.echo(f"{one.name}: {len(worker.history)} steps, written to {place}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(own)} concepts failed: {'; '.join(failed)}")


def _pipe(job: UnlearnJob) -> Any:
    streams = launched_sharding()
    return load_pipeline(job.given.model, job.placed.device, job.placed.dtype, streams=streams)


def _worker(job: UnlearnJob, pipe: Any, together: bool) -> FDUnlearner:
    shard = together and launched_sharding()
    return FDUnlearner(pipe, **job.options, data_parallel=together, shard=shard)


def _train(job: UnlearnJob, worker: FDUnlearner, found: list[Concept], folder: Path) -> None:
    place, checkpoint = folder / CHECKPOINTS, None
    if job.checkpoint_every is not None:
        checkpoint = CheckpointConfig(place, job.checkpoint_every, job.given.resume)
    with _logged(job, worker, folder) as callback:
        worker.unlearn(found, f=job.f, callback=callback, checkpoint=checkpoint)
    worker.save(folder, "diffusers" if has_loader(worker.pipe) else "peft")
    if checkpoint is not None and worker.processes.is_main:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _logged(job: UnlearnJob, worker: FDUnlearner, folder: Path) -> Iterator[Callback | None]:
    if not job.log_with or not worker.processes.is_main:
        yield None
        return
    with tracked(job.log_with, folder / LOGS, vars(worker.config)) as callback:
        yield callback
