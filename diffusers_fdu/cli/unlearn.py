"""`diffusers-fdu unlearn`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .options import GuidanceScale, Kind, Model, Named, takes

EXAMPLES = """
Examples:

  diffusers-fdu unlearn --model emoji --target dog --anchor cat --f kl --output-dir runs/dog

  diffusers-fdu unlearn --model stable-diffusion-v1-5/stable-diffusion-v1-5
  --target Snoopy --anchor dog --output-dir runs/snoopy --device cuda

  diffusers-fdu unlearn --model emoji --target dog --target banana --anchor cat --anchor carrot
  --set batch_size=32 --set robust.every=3 --output-dir runs/two

  diffusers-fdu unlearn --model emoji --target dog --config run.yaml --output-dir runs/dog
"""


@dataclass(frozen=True, kw_only=True)
class UnlearnOptions(Named):
    """Options of the command."""

    model: Model
    output_dir: Annotated[Path, typer.Option(help="Folder for the LoRA.")]
    target: Annotated[list[str] | None, typer.Option(help="What to forget; may be repeated.")] = (
        None
    )
    anchor: Annotated[
        list[str] | None,
        typer.Option(help="What takes its place, one for all or each; by default empty prompt."),
    ] = None
    concepts: Annotated[
        Path | None,
        typer.Option(help="YAML list of concepts: a LoRA for each, in folders of their names."),
    ] = None
    f: Annotated[str, typer.Option("--f", help="Divergence, or auto.")] = "hellinger"
    kind: Kind = "object"
    rank: Annotated[int | None, typer.Option(help="Of the LoRA.", show_default="8")] = None
    steps: Annotated[int | None, typer.Option(help="Most training steps.", show_default="100")] = (
        None
    )
    seed: Annotated[
        int | None, typer.Option(help="Of prompts, noise and weights.", show_default="0")
    ] = None
    guidance_scale: GuidanceScale = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep checkpoints, and go on from the last, if any.")
    ] = False


@takes(UnlearnOptions)
def unlearn(given: UnlearnOptions) -> None:
    """Unlearn a concept and write a LoRA that `pipe.load_lora_weights` reads.

    --config and --set take the fields of TrainConfig, DataConfig and Performance, the
    pipeline_kwargs of the recorded runs, and component, concept (aliases, prompts,
    negative_guidance), checkpoint_every, log_with and prefer.

    With `accelerate launch -m diffusers_fdu unlearn`, processes train it together.
    """
    from .unlearn_job import resolve_job, unlearn_each, unlearn_together

    job = resolve_job(given)
    if given.concepts is not None:
        unlearn_each(job)
    else:
        unlearn_together(job)
