"""`diffusers-fdu demo`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..settings import option_names
from .options import Named, named_options, takes
from .pipeline import load_pipeline, resolve_placement

EXAMPLES = """
Examples:

  diffusers-fdu demo

  diffusers-fdu demo --target blob --anchor noto --f hellinger --output-dir runs/blob

  diffusers-fdu demo --set trajectories=4 --set steps=20
"""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Named):
    """Options of the command."""

    target: Annotated[str, typer.Option(help="Concept or style to forget.")] = "dog"
    anchor: Annotated[str, typer.Option(help="What takes its place.")] = "cat"
    f: Annotated[str, typer.Option("--f", help="Divergence.")] = "kl"
    output_dir: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo")
    seed: Annotated[
        int | None, typer.Option(help="Of prompts, noise and weights.", show_default="0")
    ] = None


LABELS = {
    "ua": "UA   target no longer drawn",
    "ira": "IRA  the others of its kind",
    "cra": "CRA  the other domain",
}


@takes(DemoOptions)
def demo(given: DemoOptions) -> None:
    """Unlearn on the embedded emoji model, measure it and draw before and after."""
    options = named_options(given, {"seed": given.seed}, option_names())
    from .demo_job import run_demo

    placed = resolve_placement(given.device, given.dtype)
    load = partial(load_pipeline, "emoji", placed.device, placed.dtype)
    summary = run_demo(given.target, given.anchor, given.f, given.output_dir, load, **options)
    before, after = summary["before"], summary["after"]
    typer.echo(
        f"\n{given.target} -> {given.anchor}, f = {given.f}, {summary['steps']} steps\n"
        f"{'':34}before   after"
    )
    for key, label in LABELS.items():
        typer.echo(f"{label:34}{before[key]:6.1%}  {after[key]:6.1%}")
    seconds = summary["seconds"]
    typer.echo(
        f"recording {seconds['record']} s, training {seconds['train']} s\n"
        f"written to {given.output_dir}: before_after.png, the LoRA, recipe.json,\n"
        f"summary.json, evaluation.json; diffusers-fdu push {given.output_dir} USER/NAME shares it"
    )
