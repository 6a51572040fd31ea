"""`diffusers-fdu compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..settings import option_names
from .options import GuidanceScale, Kind, Model, Named, named_options, takes
from .pipeline import load_pipeline, resolve_placement, run_arguments

EXAMPLES = """
Examples:

  diffusers-fdu compare --model emoji --target dog --anchor cat --output-dir runs/compare

  diffusers-fdu compare --model emoji --target blob --anchor noto --kind style --f kl --f tv
  --seeds 1 --set trajectories=24 --output-dir runs/blob
"""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Named):
    """Options of the command."""

    model: Model
    target: Annotated[str, typer.Option(help="What to forget.")]
    output_dir: Annotated[Path, typer.Option(help="Folder for table, picture and cache.")]
    anchor: Annotated[
        str | None, typer.Option(help="What takes its place; by default the empty prompt.")
    ] = None
    f: Annotated[list[str] | None, typer.Option("--f", help="A divergence; may be repeated.")] = (
        None
    )
    kind: Kind = "object"
    seeds: Annotated[int, typer.Option(help="Trainings of each divergence.")] = 3
    strength: Annotated[
        list[float] | None, typer.Option(help="Weight of the adapter; may be repeated.")
    ] = None
    guidance_scale: GuidanceScale = None


@takes(CompareOptions)
def compare(given: CompareOptions) -> None:
    """Train several divergences and show what each trades; run it again to go on."""
    explicit = {"pipeline_kwargs": run_arguments(given.guidance_scale)}
    options = named_options(given, explicit, [*option_names(), "pipeline_kwargs"])
    from ..data.concepts import Concept
    from ..emoji.vocabulary import CONCEPTS, STYLES
    from ..evaluation.compare import FS, STRENGTHS
    from ..evaluation.compare import compare as run
    from ..evaluation.emoji import Tradeoff
    from ..evaluation.plots import plot_tradeoff

    concept = Concept(given.target, given.anchor, given.kind)  # type: ignore[arg-type]
    kwargs = run_arguments(None, given.model) | (options.pop("pipeline_kwargs") or {})
    placed = resolve_placement(given.device, given.dtype)
    pipe = load_pipeline(given.model, placed.device, placed.dtype)
    is_known = given.model == "emoji" and given.target in (*CONCEPTS, *STYLES)
    result = run(
        pipe,
        concept,
        fs=given.f or FS,
        seeds=given.seeds,
        strengths=given.strength or STRENGTHS,
        measure=Tradeoff(given.target) if is_known else None,
        cache=given.output_dir / "cache",
        pipeline_kwargs=kwargs,
        **options,
    )
    result.save(given.output_dir)
    typer.echo(result.table())
    for prefer in ("erase", "balance", "preserve"):
        best = result.best(prefer)
        typer.echo(f"{prefer}: f={best.f}, strength {best.strength:g}")
    plot_tradeoff(result, given.output_dir / "tradeoff.png")
    typer.echo(f"written to {given.output_dir}: comparison.json, comparison.md, tradeoff.png")
