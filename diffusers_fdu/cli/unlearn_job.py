"""What `diffusers-fdu unlearn` does: one adapter for all concepts, or one for each.

Processes that `accelerate launch` or `torchrun` started train one adapter together, or share a
list of concepts. If they shard the denoiser (FSDP), they train every adapter together.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from accelerate.utils import parse_flag_from_env

from ..adapters import lora as adapters
from ..adapters.loading import has_loader
from ..data.concepts import Concept, make_concepts
from ..divergences.choice import AutoDivergence
from ..divergences.profiles import divergence
from ..settings import check_names, option_names, settings
from ..training.callbacks import check_trackers, tracked
from ..training.checkpoint import CheckpointConfig
from ..unlearner import FDUnlearner
from ..utils.distributed import Processes
from ..utils.io import writable_folder
from .concept_list import DETAILS, ListedConcept, make_concept, read_concepts
from .options import named_options
from .pipeline import guidance_arguments, load_pipeline, resolve_placement
from .unlearn import Unlearn

# Names that `--config` and `--set` may use besides the options of a training.
RUN_NAMES = ("pipeline_kwargs", "component", "concept", "checkpoint_every", "log_with", "prefer")
LAUNCH_NAMES = ("data_parallel", "shard")


@dataclass(frozen=True)
class UnlearnJob:
    """Adapters that are to be trained, and how."""

    command: Unlearn
    concepts: Sequence[ListedConcept]  # of one adapter; with `--concepts` each gets an adapter
    f: str
    options: dict[str, Any]  # of `FDUnlearner`
    checkpoint_every: int | None  # None to keep no checkpoints
    log_with: Sequence[str]


def resolve_job(command: Unlearn) -> UnlearnJob:
    """Resolve the options, and refuse all that can be refused before a model is loaded."""
    explicit = {
        **{name: getattr(command, name) for name in ("rank", "steps", "seed")},
        "pipeline_kwargs.guidance_scale": command.guidance_scale,
    }
    options = named_options(command, explicit, [*option_names(), *RUN_NAMES])
    for name in LAUNCH_NAMES:
        if name in options:
            raise ValueError(f"{name} is for `accelerate launch` to say: leave it out")
    run = {name: options.pop(name) for name in RUN_NAMES if name in options}
    every = run.get("checkpoint_every") or (CheckpointConfig.every if command.resume else None)
    if every is not None:
        CheckpointConfig(command.output_dir, every)
    log_with = run.get("log_with") or []
    log_with = [log_with] if isinstance(log_with, str) else log_with
    check_trackers(log_with)
    f = AutoDivergence(run.get("prefer", "balance")).f if command.f == "auto" else command.f
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")  # as `accelerate launch` was told
    options = {"mixed_precision": precision if precision in ("fp16", "bf16") else "no", **options}
    settings(options)
    resolve_placement(command.device, command.dtype)
    options["pipeline_kwargs"] = guidance_arguments(command.model) | run.get("pipeline_kwargs", {})
    options |= {"component": run.get("component"), "shard": launched_sharding()}
    listed = _list_concepts(command, run.get("concept", {}))
    return UnlearnJob(command, listed, divergence(f).name, options, every, log_with)


def _list_concepts(command: Unlearn, details: dict[str, Any]) -> list[ListedConcept]:
    """The concepts that the options name, or those of the list."""
    targets = command.target or []
    anchors: Sequence[str | None] = command.anchor or [None]
    if (command.concepts is None) == (not targets):
        raise ValueError("pass --target or --concepts, one of them")
    check_names(details, DETAILS, "concept.")
    if command.concepts is not None:
        is_changed = command.kind != "object"
        unused = {"--anchor": command.anchor, "--kind": is_changed, "concept": details}
        if names := [name for name, value in unused.items() if value]:
            raise ValueError(f"with --concepts the list says what {', '.join(names)} would")
        return read_concepts(command.concepts)
    if len(anchors) == 1:
        anchors = [*anchors] * len(targets)
    if len(anchors) != len(targets):
        raise ValueError(f"{len(targets)} targets and {len(anchors)} anchors: pass one for each")
    if details.get("aliases") and len(targets) > 1:
        raise ValueError("concept.aliases are for a single --target")
    entries = [
        {"target": target, "anchor": anchor, "kind": command.kind, **details}
        for target, anchor in zip(targets, anchors, strict=True)
    ]
    concepts = make_concepts([make_concept(entry) for entry in entries])
    return [ListedConcept("", concept) for concept in concepts]


def launched() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_sharding() -> bool:
    """Whether `accelerate launch` told several processes to shard; FSDP 1 is a ValueError."""
    if not (launched() and parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP 1 cannot leave the adapter whole: set fsdp_version to 2")
    return True


def unlearn_together(job: UnlearnJob) -> None:
    """Train one adapter for all concepts."""
    folder = job.command.output_dir
    unlearner = FDUnlearner(_load(job), **job.options, data_parallel=launched())
    if unlearner.processes.is_main:
        writable_folder(folder)
    _train(job, unlearner, [listed.concept for listed in job.concepts], folder)
    if not unlearner.processes.is_main:
        return
    first, last = unlearner.history[0], unlearner.history[-1]
    is_plain = has_loader(unlearner.pipe)
    call = "pipe.load_lora_weights(" if is_plain else "diffusers_fdu.load_unlearned(pipe, "
    typer.echo(
        f"{len(unlearner.history)} steps, divergence {first.divergence:.4g} -> "
        f"{last.divergence:.4g}; load it with {call}{str(folder)!r})"
    )


def unlearn_each(job: UnlearnJob) -> None:
    """Train an adapter for each concept that has none yet; every process takes its share.

    Processes that shard the denoiser go through the list together. A concept that fails does not
    stop the others; a ValueError names it at the end.
    """
    folder, together = job.command.output_dir, job.options["shard"]
    processes = Processes(together=launched())
    rank, count = (0, 1) if together else (processes.rank, processes.count)
    is_done = [listed.is_done(folder, job.f) for listed in job.concepts]
    if any(is_done) and processes.is_main:
        typer.echo(f"{sum(is_done)} of {len(is_done)} concepts are done already")
    share = [job.concepts[i] for i in range(rank, len(is_done), count) if not is_done[i]]
    writable_folder(folder)
    pipe = _load(job) if share else None
    failures = []
    for listed in share:
        place = writable_folder(folder / listed.name)
        unlearner = FDUnlearner(pipe, **job.options, data_parallel=together)
        state_before = adapters.snapshot(unlearner.model)
        try:
            _train(job, unlearner, [listed.concept], place)
        except (ValueError, ArithmeticError) as error:
            failures.append(f"{listed.name}: {error}")
            typer.echo(failures[-1])
            continue
        adapters.remove(unlearner.model, str(unlearner.adapter_name), state_before)
        if unlearner.processes.is_main:
            typer.echo(f"{listed.name}: {len(unlearner.history)} steps, written to {place}")
    if failures:
        raise ValueError(f"{len(failures)} of {len(share)} concepts failed: {'; '.join(failures)}")


def _load(job: UnlearnJob) -> Any:
    command = job.command
    return load_pipeline(command.model, command.device, command.dtype, job.options["shard"])


def _train(job: UnlearnJob, unlearner: FDUnlearner, targets: list[Concept], folder: Path) -> None:
    place, checkpoint = folder / "checkpoints", None
    if job.checkpoint_every is not None:
        checkpoint = CheckpointConfig(place, job.checkpoint_every, job.command.resume)
    is_main = unlearner.processes.is_main
    logged = tracked(job.log_with, folder / "logs", vars(unlearner.config))
    with logged if is_main and job.log_with else nullcontext() as callback:
        unlearner.unlearn(targets, f=job.f, callback=callback, checkpoint=checkpoint)
    unlearner.save(folder, "diffusers" if has_loader(unlearner.pipe) else "peft")
    if checkpoint is not None and is_main:
        shutil.rmtree(place, ignore_errors=True)
