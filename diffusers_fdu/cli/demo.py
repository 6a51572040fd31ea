"""`diffusers-fdu demo`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from ..settings import option_names
from .options import SEED, ConfigOptions, named_options, option
from .pipeline import load_pipeline

LABELS = {
    "ua": "UA   target no longer drawn",
    "ira": "IRA  the others of its kind",
    "cra": "CRA  the other domain",
}


@dataclass(frozen=True, kw_only=True)
class Demo(ConfigOptions):
    """Unlearn on the embedded emoji model, measure it and draw before and after.

    Examples:
        diffusers-fdu demo
        diffusers-fdu demo --target blob --anchor noto --f hellinger --output-dir runs/blob
        diffusers-fdu demo --set trajectories=4 --set steps=20
    """

    target: str = option("Concept or style to forget.", "dog")
    anchor: str = option("Concept or style that takes its place.", "cat")
    f: str = option("Divergence that is minimised.", "kl", "--f")
    output_dir: Path = option("Folder that the results are written to.", Path("runs/demo"))
    seed: int | None = option(SEED, show_default="0")

    def __call__(self) -> None:
        config = named_options(self, {"seed": self.seed}, option_names())
        from .demo_job import run_demo

        load = partial(load_pipeline, "emoji", self.device, self.dtype)
        target, anchor, f, folder = self.target, self.anchor, self.f, self.output_dir
        summary = run_demo(target, anchor, f, folder, load, **config)
        before, after = summary["before"], summary["after"]
        typer.echo(f"\n{target} -> {anchor}, f = {f}, {summary['steps']} steps")
        typer.echo(f"{'':34}before   after")
        for key, label in LABELS.items():
            typer.echo(f"{label:34}{before[key]:6.1%}  {after[key]:6.1%}")
        seconds = summary["seconds"]
        typer.echo(
            f"recording {seconds['record']} s, training {seconds['train']} s\n"
            f"written to {folder}: before_after.png, the LoRA, recipe.json,\n"
            f"summary.json, evaluation.json; diffusers-fdu push {folder} USER/NAME shares it"
        )
