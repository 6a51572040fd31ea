"""Commands on adapters that are there: stack, merge, app, info, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from .options import GUIDANCE_SCALE, MODEL, PlacementOptions, argument, option, required
from .pipeline import guidance_arguments, load_pipeline

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
ADAPTERS = "Adapters: folders or Hub ids."
WEIGHT = "Strength of an adapter, once for each of them; by default all have strength 1."


@dataclass(frozen=True, kw_only=True)
class Stack(PlacementOptions):
    """Load adapters side by side, show where they conflict, and draw with them.

    Examples:
        diffusers-fdu stack runs/no-dog runs/no-blob --model emoji
        diffusers-fdu stack runs/no-dog runs/no-blob --weight 1 --weight 0.6 --model emoji
            --prompt "a dog emoji in blob style" --output both.png
    """

    adapters: list[str] = argument(ADAPTERS)
    model: str = required(MODEL)
    weight: list[float] | None = option(WEIGHT)
    prompt: str | None = option("Prompt of a picture that is drawn with all adapters.")
    output: Path = option("File that the picture is written to.", Path("stacked.png"))
    seed: int = option("Seed of the picture's noise.", 0)
    guidance_scale: float | None = option(GUIDANCE_SCALE)

    def __call__(self) -> None:
        from ..adapters.merging.conflicts import conflicts
        from ..adapters.stacking import stack as stack_adapters
        from ..pipelines.generate import generate

        pipe = load_pipeline(self.model, self.device, self.dtype)
        strengths = stack_adapters(pipe, self.adapters, self.weight)
        for name, strength in strengths.items():
            typer.echo(f"{name}: strength {strength:g}")
        if len(self.adapters) > 1:
            try:
                name, reader, share = conflicts(self.adapters).worst()
                typer.echo(f"most in conflict: {reader} reads {share:.0%} of what {name} acts on")
            except ValueError as error:  # such as adapters of two denoisers
                typer.echo(f"conflicts not compared: {error}")
        typer.echo(f"pipe.set_adapters({list(strengths)}, {list(strengths.values())})")
        if self.prompt is not None:
            kwargs = guidance_arguments(self.model, self.guidance_scale)
            generate(pipe, [self.prompt], [self.seed], **kwargs)[0].save(self.output)
            typer.echo(f"written to {self.output}")


@dataclass(frozen=True, kw_only=True)
class Merge(PlacementOptions):
    """Make one LoRA of several, which costs one at inference.

    Examples:
        diffusers-fdu merge runs/no-dog runs/no-blob --output-dir runs/neither
        diffusers-fdu merge runs/no-dog runs/no-blob --method svd --rank 8
            --output-dir runs/neither
        diffusers-fdu merge runs/no-dog runs/no-blob --method svd --rank 8 --refine --model emoji
            --output-dir runs/neither
    """

    adapters: list[str] = argument(ADAPTERS)
    output_dir: Path = required("Folder that the merged LoRA is written to.")
    weight: list[float] | None = option(WEIGHT)
    method: str = option("Method of merging: concat or svd.", "concat")
    rank: int | None = option("Rank of the result; by default the sum of the ranks.")
    refine: bool = option("Train the result a little, on --model.", False, "--refine")
    steps: int | None = option("Steps of refining; by default 5 for each concept, at least 20.")
    model: str | None = option("Model that the adapters were trained on, to refine.")

    def __call__(self) -> None:
        from ..adapters.merging.merge import merge as merge_adapters

        if self.refine and self.model is None:
            raise ValueError("--refine needs --model, what the adapters were trained on")
        method: Any = self.method  # checked there
        merged = merge_adapters(self.adapters, self.weight, method=method, rank=self.rank)
        if self.refine:
            from ..retraining import refine

            pipe = load_pipeline(str(self.model), self.device, self.dtype)
            steps: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
            merged = refine(pipe, merged, **steps)
        merged.save(self.output_dir)
        when = " before it was refined" if self.refine else ""
        typer.echo(
            f"{len(self.adapters)} adapters, rank {merged.rank}, {merged.error:.2%} from their "
            f"sum{when}; written to {self.output_dir}"
        )


@dataclass(frozen=True, kw_only=True)
class ShowPage(PlacementOptions):
    """Show a page for the browser: the base model beside the unlearned one, at any strength.

    Examples:
        diffusers-fdu app --model emoji --adapters runs/no-dog --adapters runs/no-banana
        diffusers-fdu app --model stable-diffusion-v1-5/stable-diffusion-v1-5
            --adapters runs/snoopy --device cuda
    """

    model: str = required(MODEL)
    adapters: list[str] = required(
        "Adapter with a slider: a folder or Hub id; it may be repeated."
    )
    host: str = option("Address: 127.0.0.1 for this machine alone, 0.0.0.0 for all.", "127.0.0.1")
    port: int = option("Port that the page answers at.", 7860)

    def __call__(self) -> None:
        from ..adapters.download import local_folder
        from ..adapters.read import read_adapter
        from ..adapters.stacking import stack as stack_adapters
        from ..app.server import check_gradio, serve

        # What can be refused at once is refused before a model is loaded.
        check_gradio()
        adapter_files = [read_adapter(local_folder(source)) for source in self.adapters]
        pipe = load_pipeline(self.model, self.device, self.dtype)
        names = list(stack_adapters(pipe, self.adapters))
        recipes = {name: file.recipe for name, file in zip(names, adapter_files, strict=True)}
        if self.host not in LOCAL_HOSTS:
            typer.echo(f"whoever reaches {self.host} can draw: there is no password")
        serve(pipe, names, recipes=recipes, host=self.host, port=self.port)


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what an adapter unlearns, how strongly, how it was trained, and how to load it.

    Examples:
        diffusers-fdu info runs/no-dog
        diffusers-fdu info loras/no-dog.safetensors
    """

    path: str = argument("Folder or Hub id of an adapter, or an exported file.")

    def __call__(self) -> None:
        from ..adapters.info import describe

        typer.echo(str(describe(self.path)))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an adapter as one file for other programs: for SD 1.x and 2.x, SDXL, FLUX.1, SD3.

    Examples:
        diffusers-fdu export runs/no-dog --output loras/no-dog.safetensors
        diffusers-fdu export runs/no-dog --output loras/no-dog.safetensors --title "No dogs"
        diffusers-fdu export downloads/lora --family flux --output loras/lora.safetensors
    """

    folder: str = argument("Folder or Hub id of an adapter.")
    output: Path = required("File that is written; its name ends in .safetensors.")
    format: str = option("Format: kohya, for ComfyUI, A1111, Forge and sd-scripts.", "kohya")
    title: str | None = option("Title that other programs show; by default the adapter's name.")
    family: str | None = option("Family of the model without recipe.json: sd, sdxl, flux, sd3.")

    def __call__(self) -> None:
        from ..adapters.export.export import export as export_adapter

        path = export_adapter(**vars(self))
        typer.echo(f"written to {path}, {path.stat().st_size:,} bytes")
