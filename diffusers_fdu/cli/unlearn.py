"""`diffusers-fdu unlearn`."""

from dataclasses import dataclass
from pathlib import Path

from .options import GUIDANCE_SCALE, KIND, MODEL, SEED, ConfigOptions, option, required


@dataclass(frozen=True, kw_only=True)
class Unlearn(ConfigOptions):
    """Unlearn a concept and write a LoRA that `pipe.load_lora_weights` reads.

    --config and --set take the fields of TrainConfig, DataConfig and PerformanceConfig, the
    pipeline_kwargs of the recorded runs, and component, concept (aliases, prompts,
    negative_guidance), checkpoint_every, log_with and prefer.

    With `accelerate launch -m diffusers_fdu unlearn`, processes train it together.

    Examples:
        diffusers-fdu unlearn --model emoji --target dog --anchor cat --f kl --output-dir runs/dog
        diffusers-fdu unlearn --model stable-diffusion-v1-5/stable-diffusion-v1-5
            --target Snoopy --anchor dog --output-dir runs/snoopy --device cuda
        diffusers-fdu unlearn --model emoji --target dog --target banana --anchor cat
            --anchor carrot --set batch_size=32 --set robust.every=3 --output-dir runs/two
        diffusers-fdu unlearn --model emoji --target dog --config run.yaml --output-dir runs/dog
    """

    model: str = required(MODEL)
    output_dir: Path = required("Folder that the LoRA is written to.")
    target: list[str] | None = option("Concept to forget; it may be repeated.")
    anchor: list[str] | None = option(
        "Concept that takes its place, one for all or for each; by default the empty prompt."
    )
    concepts: Path | None = option(
        "YAML list of concepts, each for a LoRA in a folder of its own."
    )
    f: str = option("Divergence that is minimised, or auto.", "hellinger", "--f")
    kind: str = option(KIND, "object")
    rank: int | None = option("Rank of the LoRA.", show_default="8")
    steps: int | None = option("Number of training steps at most.", show_default="100")
    seed: int | None = option(SEED, show_default="0")
    guidance_scale: float | None = option(GUIDANCE_SCALE)
    resume: bool = option("Keep checkpoints, and go on from the last.", False, "--resume")

    def __call__(self) -> None:
        from .unlearn_job import resolve_job, unlearn_each, unlearn_together

        job = resolve_job(self)
        if self.concepts is None:
            unlearn_together(job)
        else:
            unlearn_each(job)
