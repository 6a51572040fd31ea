"""`diffusers-fdu compare`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from ..settings import option_names
from .options import GUIDANCE_SCALE, KIND, MODEL, ConfigOptions, named_options, option, required
from .pipeline import guidance_arguments, load_pipeline


@dataclass(frozen=True, kw_only=True)
class Compare(ConfigOptions):
    """Train with several divergences and show what each trades; run it again to go on.

    Examples:
        diffusers-fdu compare --model emoji --target dog --anchor cat --output-dir runs/compare
        diffusers-fdu compare --model emoji --target blob --anchor noto --kind style --f kl --f tv
            --seeds 1 --set trajectories=24 --output-dir runs/blob
    """

    model: str = required(MODEL)
    target: str = required("Concept to forget.")
    output_dir: Path = required("Folder for the table, the picture and the cache.")
    anchor: str | None = option("Concept that takes its place; by default the empty prompt.")
    f: list[str] | None = option("A divergence to compare; it may be repeated.", None, "--f")
    kind: str = option(KIND, "object")
    seeds: int = option("Number of trainings with each divergence.", 3)
    strength: list[float] | None = option("Strength of the adapters; it may be repeated.")
    guidance_scale: float | None = option(GUIDANCE_SCALE)

    def __call__(self) -> None:
        explicit = {"pipeline_kwargs.guidance_scale": self.guidance_scale}
        config = named_options(self, explicit, [*option_names(), "pipeline_kwargs"])
        from ..data.concepts import Concept
        from ..emoji.vocabulary import CONCEPTS, STYLES
        from ..evaluation.compare import FS, STRENGTHS
        from ..evaluation.compare import compare as compare_divergences
        from ..evaluation.emoji import Tradeoff
        from ..evaluation.plots import plot_tradeoff

        concept = Concept(self.target, self.anchor, self.kind)  # type: ignore[arg-type]
        pipeline_kwargs = guidance_arguments(self.model) | config.pop("pipeline_kwargs", {})
        pipe = load_pipeline(self.model, self.device, self.dtype)
        is_drawn = self.model == "emoji" and self.target in (*CONCEPTS, *STYLES)
        comparison = compare_divergences(
            pipe,
            concept,
            fs=self.f or FS,
            seeds=self.seeds,
            strengths=self.strength or STRENGTHS,
            measure=Tradeoff(self.target) if is_drawn else None,
            cache=self.output_dir / "cache",
            pipeline_kwargs=pipeline_kwargs,
            **config,
        )
        comparison.save(self.output_dir)
        typer.echo(comparison.table())
        for preference in ("erase", "balance", "preserve"):
            best = comparison.best(preference)
            typer.echo(f"{preference}: f={best.f}, strength {best.strength:g}")
        plot_tradeoff(comparison, self.output_dir / "tradeoff.png")
        typer.echo(f"written to {self.output_dir}: comparison.json, comparison.md, tradeoff.png")
