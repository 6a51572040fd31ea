"""`diffusers-fdu evaluate`."""

from dataclasses import dataclass
from pathlib import Path

import typer

from .options import ConfigOptions, argument, named_options, option
from .pipeline import load_pipeline

CONFIG_NAMES = (
    *("seeds", "num_inference_steps", "guidance_scale", "pipeline_kwargs", "attack_seeds"),
    *("batch", "data_parallel"),
)
"""Fields of `EvaluationConfig` that `--config` and `--set` may name."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ConfigOptions):
    """Measure what an adapter made its model forget, and what it kept; go on if interrupted.

    The figures also go to `evaluation.json` in the adapter's folder, for its model card.

    --config and --set take num_inference_steps, guidance_scale and pipeline_kwargs of the runs,
    seeds, attack_seeds, batch, and data_parallel, which shares the drawing among the processes
    of `accelerate launch`.

    Examples:
        diffusers-fdu evaluate runs/no-dog --protocol quick --report runs/report
        diffusers-fdu evaluate runs/no-dog --attack inversion --attack greedy-search
            --report runs/report
        diffusers-fdu evaluate me/no-snoopy --model <folder> --clip openai/clip-vit-base-patch32
            --protocol mace --set num_inference_steps=20 --report runs/report
    """

    adapter: str = argument("Folder or Hub id of an adapter.")
    protocol: str = option("Protocol: quick, unlearncanvas, concept-ablation or mace.", "quick")
    report: Path = option("Folder for JSON, Markdown, HTML page and pictures.", Path("report"))
    model: str | None = option("Model: a folder, Hub id or `emoji`; by default the recipe's.")
    target: list[str] | None = option("A target of the adapter, if not all; it may be repeated.")
    attack: list[str] | None = option("An attack to run, or `all`; it may be repeated.")
    clip: str | None = option("Folder or Hub id of a CLIP that scores the pictures.")
    classifier: str | None = option("Folder or Hub id of an image classifier, as the judge.")
    seed: list[int] | None = option("A seed of the pictures; it may be repeated.")

    def __call__(self) -> None:
        config = named_options(self, {"seeds": self.seed or None}, CONFIG_NAMES)
        from transformers import pipeline

        from ..adapters.download import local_folder
        from ..adapters.evaluation_file import write_evaluation
        from ..adapters.read import read_adapter
        from ..adapters.recipe import EMBEDDED
        from ..adapters.summary import mapping
        from ..evaluation.adapter_under_test import concepts_of
        from ..evaluation.attacks.run import check_names
        from ..evaluation.evaluate import EvaluationConfig
        from ..evaluation.evaluate import evaluate as evaluate_adapter
        from ..evaluation.judges import ClassifierJudge
        from ..evaluation.protocols import resolve_protocol
        from ..evaluation.report.pages import to_markdown, write_report
        from ..evaluation.result import to_json
        from ..utils.distributed import Processes
        from ..utils.io import writable_folder

        resolve_protocol(self.protocol)
        attacks = check_names(self.attack or ())
        recipe = read_adapter(local_folder(self.adapter)).recipe
        concepts = concepts_of(recipe, self.target or ())
        folder = writable_folder(self.report)
        model = self.model or mapping(recipe).get("base_model")
        if not isinstance(model, str) or not model:
            raise ValueError(f"the recipe of {self.adapter!r} names no model: pass --model")
        pipe = load_pipeline("emoji" if model == EMBEDDED else model, self.device, self.dtype)
        judge = None
        if self.classifier is not None:
            classify = pipeline("image-classification", self.classifier, device=pipe.device)
            judge = ClassifierJudge(classify)
        evaluation = evaluate_adapter(
            pipe,
            self.adapter,
            self.protocol,
            judge=judge,
            clip=self.clip,
            attacks=attacks,
            concepts=concepts,
            config=EvaluationConfig(**config, folder=folder / "pictures"),
        )
        if not Processes(config.get("data_parallel", False)).is_main:
            return
        write_report(evaluation, folder)
        if Path(self.adapter).is_dir():
            write_evaluation(to_json(evaluation), Path(self.adapter))
        typer.echo(to_markdown(evaluation))
        typer.echo(f"written to {folder}: evaluation.json, report.md, report.html, pictures")
