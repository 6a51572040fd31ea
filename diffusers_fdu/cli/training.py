"""Commands that train: demo, unlearn, compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import (
    load_pipeline,
    named_concepts,
    resolve_placement,
    run_arguments,
    values,
)
from .options import Device, Dtype

DEMO_EXAMPLES = """
Examples:

  diffusers-fdu demo

  diffusers-fdu demo --target blob --anchor noto --f hellinger --output-dir runs/blob
"""

UNLEARN_EXAMPLES = """
Examples:

  diffusers-fdu unlearn --model emoji --target dog --anchor cat --f kl --output-dir runs/dog

  diffusers-fdu unlearn --model stable-diffusion-v1-5/stable-diffusion-v1-5
  --target Snoopy --anchor dog --output-dir runs/snoopy --device cuda

  diffusers-fdu unlearn --model emoji --target dog --target banana --anchor cat --anchor carrot
  --set surgery=true --output-dir runs/two
"""

COMPARE_EXAMPLES = """
Examples:

  diffusers-fdu compare --model emoji --target dog --anchor cat --output-dir runs/compare

  diffusers-fdu compare --model emoji --target blob --anchor noto --kind style --f kl --f tv
  --seeds 1 --set trajectories=24 --output-dir runs/blob
"""

LOADERS = {"diffusers": "pipe.load_lora_weights(", "peft": "diffusers_fdu.load_unlearned(pipe, "}

SET_HELP = "Any other option of the library, as name=value; may be repeated."
Options = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]


def demo(
    target: Annotated[str, typer.Option(help="Concept or style to forget.")] = "dog",
    anchor: Annotated[str, typer.Option(help="What takes its place.")] = "cat",
    f: Annotated[str, typer.Option("--f", help="Divergence.")] = "kl",
    output_dir: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of prompts, noise and weights.")] = 0,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Unlearn on the embedded emoji model, measure it and draw before and after."""
    from .demo import run_demo

    placed = resolve_placement(device, dtype)
    load = partial(load_pipeline, "emoji", placed.device, placed.dtype)
    summary = run_demo(target, anchor, f, output_dir, load, seed=seed)
    before, after = summary["before"], summary["after"]
    typer.echo(f"\n{target} -> {anchor}, f = {f}, {summary['steps']} steps")
    typer.echo(f"{'':34}before   after")
    labels = {
        "ua": "UA   target no longer drawn",
        "ira": "IRA  the others of its kind",
        "cra": "CRA  the other domain",
    }
    for key, label in labels.items():
        typer.echo(f"{label:34}{before[key]:6.1%}  {after[key]:6.1%}")
    seconds = summary["seconds"]
    typer.echo(f"recording {seconds['record']} s, training {seconds['train']} s")
    typer.echo(f"written to {output_dir}: before_after.png, the LoRA, recipe.json,")
    typer.echo(
        f"summary.json, evaluation.json; diffusers-fdu push {output_dir} USER/NAME shares it"
    )


def unlearn(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a pipeline, or `emoji`.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the LoRA.")],
    target: Annotated[
        list[str] | None, typer.Option(help="What to forget; may be repeated.")
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(help="YAML list of concepts: a LoRA for each, in folders of their names."),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(help="What takes its place, one for all or each; none: the empty prompt."),
    ] = None,
    f: Annotated[str, typer.Option("--f", help="Divergence, or auto.")] = "hellinger",
    prefer: Annotated[str, typer.Option(help="For auto: erase, balance or preserve.")] = "balance",
    kind: Annotated[str, typer.Option(help="object, style or prompt.")] = "object",
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name of the only target; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File of prompts with {} for the concept.")
    ] = None,
    negative_guidance: Annotated[
        float | None, typer.Option(help="In place of an anchor: the scale of ESD.")
    ] = None,
    retain: Annotated[
        list[str] | None, typer.Option(help="A prompt that must stay; may be repeated.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="exact or variational.")] = "exact",
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 8,
    steps: Annotated[int, typer.Option(help="Most training steps.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Rows of each role in a step.")] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; none: by the layers' width.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Of the recorded runs; none: the pipeline's own, 4 of `emoji`."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the denoiser.")] = False,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(help="Rows of each role at once; none: as many as fit the memory."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory, more time; none: if the memory asks for it.",
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or adamw_8bit.")] = "adamw",
    seed: Annotated[int, typer.Option(help="Of prompts, noise and weights.")] = 0,
    format: Annotated[
        str, typer.Option(help="diffusers, or peft where diffusers has no LoRA loader.")
    ] = "diffusers",
    checkpoint_every: Annotated[
        int,
        typer.Option(help="Steps between checkpoints; 0: none. They go once the LoRA is there."),
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last, and keep more.")
    ] = False,
    log_with: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb or trackio; may be repeated.")
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="The denoiser to train; none: the pipeline's first.")
    ] = None,
    options: Options = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Unlearn a concept and write a LoRA that `pipe.load_lora_weights` reads.

    With `accelerate launch -m diffusers_fdu unlearn`, processes train it together.
    """
    from ..config import settings
    from ..data.concepts import NegativeGuidance
    from ..divergences.choice import choose
    from ..divergences.profiles import divergence
    from ..training.checkpoint import EVERY
    from ..training.tracking import check_trackers
    from .jobs import read_jobs
    from .order import (
        Order,
        launched_precision,
        unlearn_each,
        unlearn_together,
    )

    # What can be refused at once is refused before a model is loaded, the rest before training.
    if (concepts is None) == (not target):
        raise ValueError("pass --target or --concepts, one of them")
    if negative_guidance is not None and anchor:
        raise ValueError("pass --anchor or --negative-guidance, not both")
    given = {
        "--anchor": anchor,
        "--kind": kind != "object",
        "--alias": alias,
        "--prompts": prompts,
        "--negative-guidance": negative_guidance is not None,
    }
    if concepts is not None and any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise ValueError(f"with --concepts the list says what {names} would")
    if checkpoint_every < 0:
        raise ValueError(f"--checkpoint-every must not be negative, got {checkpoint_every}")
    if format not in LOADERS:
        raise ValueError(f"unknown --format {format!r}: choose {', '.join(LOADERS)}")
    check_trackers(log_with or [])
    f = choose(prefer, None) if f == "auto" else f  # type: ignore[arg-type]
    f = divergence(f).name
    settled: dict[str, Any] = {
        "rank": rank,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": "auto" if learning_rate is None else learning_rate,
        "retain": retain or None,
        "estimator": estimator,
        "seed": seed,
        "compile": compile,
        "micro_batch_size": "auto" if micro_batch_size is None else micro_batch_size,
        "gradient_checkpointing": (
            "auto" if gradient_checkpointing is None else gradient_checkpointing
        ),
        "optimizer": optimizer,
        "mixed_precision": launched_precision() or "no",
        **values(options),
    }
    for name in ("data_parallel", "shard"):
        if name in settled:
            raise ValueError(f"{name} is for `accelerate launch` to say, not for --set")
    settings(settled)
    placed = resolve_placement(device, dtype)
    order = Order(
        model,
        placed.device,
        placed.dtype,
        run_arguments(model, guidance_scale),
        settled,
        f,
        format,  # type: ignore[arg-type]
        output_dir,
        checkpoint_every or (EVERY if resume else 0),
        resume,
        log_with or [],
        component,
        typer.echo,
    )
    if concepts is not None:
        unlearn_each(order, read_jobs(concepts))
        return
    guided = None if negative_guidance is None else NegativeGuidance(negative_guidance)
    found = named_concepts(target or [], anchor or [guided], kind, prompts, alias)
    unlearner = unlearn_together(order, found)
    if not unlearner.processes.is_main:
        return
    first, last = unlearner.history[0], unlearner.history[-1]
    typer.echo(
        f"{len(unlearner.history)} steps, divergence {first.divergence:.4g} -> "
        f"{last.divergence:.4g}; load it with {LOADERS[format]}{str(output_dir)!r})"
    )


def compare(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a pipeline, or `emoji`.")],
    target: Annotated[str, typer.Option(help="What to forget.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for table, picture and cache.")],
    anchor: Annotated[
        str | None, typer.Option(help="What takes its place; none: the empty prompt.")
    ] = None,
    f: Annotated[
        list[str] | None, typer.Option("--f", help="A divergence; may be repeated.")
    ] = None,
    kind: Annotated[str, typer.Option(help="object, style or prompt.")] = "object",
    seeds: Annotated[int, typer.Option(help="Trainings of each divergence.")] = 3,
    strength: Annotated[
        list[float] | None, typer.Option(help="Weight of the adapter; may be repeated.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Of the recorded runs; none: the pipeline's own, 4 of `emoji`."),
    ] = None,
    options: Options = None,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Train several divergences and show what each trades; run it again to go on."""
    from ..emoji.vocabulary import CONCEPTS, STYLES
    from ..evaluation.compare import FS, STRENGTHS
    from ..evaluation.compare import compare as run
    from ..evaluation.emoji import Tradeoff
    from ..evaluation.plots import plot_tradeoff

    found = named_concepts([target], [anchor], kind, None, None)
    placed = resolve_placement(device, dtype)
    pipe = load_pipeline(model, placed.device, placed.dtype)
    kwargs = run_arguments(model, guidance_scale)
    is_known = model == "emoji" and target in (*CONCEPTS, *STYLES)
    result = run(
        pipe,
        found,
        fs=f or FS,
        seeds=seeds,
        strengths=strength or STRENGTHS,
        measure=Tradeoff(target) if is_known else None,
        cache=output_dir / "cache",
        pipeline_kwargs=kwargs,
        **values(options),
    )
    result.save(output_dir)
    typer.echo(result.table())
    for prefer in ("erase", "balance", "preserve"):
        best = result.best(prefer)
        typer.echo(f"{prefer}: f={best.f}, strength {best.strength:g}")
    plot_tradeoff(result, output_dir / "tradeoff.png")
    typer.echo(f"written to {output_dir}: comparison.json, comparison.md, tradeoff.png")
