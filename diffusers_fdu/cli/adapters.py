"""Commands on adapters that are there: stack, merge, app, info, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import GuidanceScale, Model, Placement, takes
from .pipeline import load_pipeline, resolve_placement, run_arguments

STACK_EXAMPLES = """
Examples:

  diffusers-fdu stack runs/no-dog runs/no-blob --model emoji

  diffusers-fdu stack runs/no-dog runs/no-blob --weight 1 --weight 0.6 --model emoji
  --prompt "a dog emoji in blob style" --output both.png
"""

MERGE_EXAMPLES = """
Examples:

  diffusers-fdu merge runs/no-dog runs/no-blob --output-dir runs/neither

  diffusers-fdu merge runs/no-dog runs/no-blob --method svd --rank 8 --output-dir runs/neither

  diffusers-fdu merge runs/no-dog runs/no-blob --method svd --rank 8 --refine --model emoji
  --output-dir runs/neither
"""

PAGE_EXAMPLES = """
Examples:

  diffusers-fdu app --model emoji --adapters runs/no-dog --adapters runs/no-banana

  diffusers-fdu app --model stable-diffusion-v1-5/stable-diffusion-v1-5 --adapters runs/snoopy
  --device cuda
"""

INFO_EXAMPLES = """
Examples:

  diffusers-fdu info runs/no-dog

  diffusers-fdu info loras/no-dog.safetensors
"""

EXPORT_EXAMPLES = """
Examples:

  diffusers-fdu export runs/no-dog --output loras/no-dog.safetensors

  diffusers-fdu export runs/no-dog --output loras/no-dog.safetensors --title "No dogs"

  diffusers-fdu export downloads/lora --family flux --output loras/lora.safetensors
"""

OURSELVES = ("127.0.0.1", "localhost", "::1")

Adapters = Annotated[list[str], typer.Argument(help="Folders of adapters, or their Hub ids.")]
Weights = Annotated[
    list[float] | None, typer.Option("--weight", help="Strength; once for each adapter; none: 1.")
]


@dataclass(frozen=True, kw_only=True)
class StackOptions(Placement):
    """Options of the command."""

    adapters: Adapters
    model: Model
    weight: Weights = None
    prompt: Annotated[str | None, typer.Option(help="Draw this with all of them.")] = None
    output: Annotated[Path, typer.Option(help="File of the picture.")] = Path("stacked.png")
    seed: Annotated[int, typer.Option(help="Of the picture.")] = 0
    guidance_scale: GuidanceScale = None


@takes(StackOptions)
def stack(given: StackOptions) -> None:
    """Load adapters side by side, show where they conflict, and draw with them."""
    from ..adapters.merging.conflicts import conflicts
    from ..adapters.stacking import stack as load
    from ..pipelines.generate import generate

    placed = resolve_placement(given.device, given.dtype)
    pipe = load_pipeline(given.model, placed.device, placed.dtype)
    strengths = load(pipe, given.adapters, given.weight)
    for name, strength in strengths.items():
        typer.echo(f"{name}: strength {strength:g}")
    if len(given.adapters) > 1:
        try:
            whose, by, share = conflicts(given.adapters).worst()
            typer.echo(f"most in conflict: {by} reads {share:.0%} of what {whose} acts on")
        except ValueError as error:  # such as those of two denoisers
            typer.echo(f"conflicts not compared: {error}")
    typer.echo(f"pipe.set_adapters({list(strengths)}, {list(strengths.values())})")
    if given.prompt is not None:
        kwargs = run_arguments(given.guidance_scale, given.model)
        generate(pipe, [given.prompt], [given.seed], **kwargs)[0].save(given.output)
        typer.echo(f"written to {given.output}")


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Placement):
    """Options of the command."""

    adapters: Adapters
    output_dir: Annotated[Path, typer.Option(help="Folder for the LoRA.")]
    weight: Weights = None
    method: Annotated[str, typer.Option(help="concat or svd.")] = "concat"
    rank: Annotated[
        int | None, typer.Option(help="Of the result; by default the sum of the ranks.")
    ] = None
    refine: Annotated[
        bool, typer.Option("--refine", help="Train the result a little, on --model.")
    ] = False
    steps: Annotated[
        int | None, typer.Option(help="Of refining; by default 5 for each concept, at least 20.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="What the adapters were trained on, to refine.")
    ] = None


@takes(MergeOptions)
def merge(given: MergeOptions) -> None:
    """Make one LoRA of several, which costs one at inference."""
    from ..adapters.merging.merge import merge as run

    if given.refine and given.model is None:
        raise ValueError("--refine needs --model, what the adapters were trained on")
    merged = run(
        given.adapters,
        given.weight,
        method=given.method,  # type: ignore[arg-type]  # checked there
        rank=given.rank,
    )
    if given.refine:
        from ..retraining import refine

        placed = resolve_placement(given.device, given.dtype)
        pipe = load_pipeline(str(given.model), placed.device, placed.dtype)
        options: dict[str, Any] = {} if given.steps is None else {"steps": given.steps}
        merged = refine(pipe, merged, **options)
    merged.save(given.output_dir)
    off = f"{merged.error:.2%} from their sum{' before it was refined' if given.refine else ''}"
    typer.echo(
        f"{len(given.adapters)} adapters, rank {merged.rank}, {off}; written to {given.output_dir}"
    )


@dataclass(frozen=True, kw_only=True)
class PageOptions(Placement):
    """Options of the command."""

    model: Model
    adapters: Annotated[
        list[str],
        typer.Option(help="Folder or Hub id of an adapter; may be repeated: each has a slider."),
    ]
    host: Annotated[
        str, typer.Option(help="Whom it answers: 127.0.0.1 this machine, 0.0.0.0 all.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Where it listens.")] = 7860


@takes(PageOptions)
def show_page(given: PageOptions) -> None:
    """Show a page for the browser: the base model beside the unlearned one, at any strength."""
    from ..adapters.download import local_folder
    from ..adapters.read import read_adapter
    from ..adapters.stacking import stack as load
    from ..app.server import check_gradio, serve

    # What can be refused at once is refused before a model is loaded.
    check_gradio()
    found = [read_adapter(local_folder(source)) for source in given.adapters]
    placed = resolve_placement(given.device, given.dtype)
    pipe = load_pipeline(given.model, placed.device, placed.dtype)
    names = list(load(pipe, given.adapters))
    recipes = {name: adapter.recipe for name, adapter in zip(names, found, strict=True)}
    if given.host not in OURSELVES:
        typer.echo(f"whoever reaches {given.host} can draw: there is no password")
    serve(pipe, names, recipes=recipes, host=given.host, port=given.port)


def info(
    path: Annotated[str, typer.Argument(help="Folder, Hub id, or an exported file.")],
) -> None:
    """Show what an adapter unlearns, how strongly, how it was trained, and how to load it."""
    from ..adapters.info import describe

    typer.echo(str(describe(path)))


def export(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of an adapter.")],
    output: Annotated[Path, typer.Option(help="The file, which ends in .safetensors.")],
    format: Annotated[
        str, typer.Option(help="kohya: for ComfyUI, A1111, Forge and kohya's sd-scripts.")
    ] = "kohya",
    title: Annotated[
        str | None, typer.Option(help="Shown by other programs; none: the adapter's name.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="sd, sdxl, flux or sd3, of an adapter without recipe.json.")
    ] = None,
) -> None:
    """Write an adapter as one file for other programs: for SD 1.x and 2.x, SDXL, FLUX.1, SD3."""
    from ..adapters.export.export import export as run

    path = run(folder, output, format, title=title, family=family)
    typer.echo(f"written to {path}, {path.stat().st_size:,} bytes")
