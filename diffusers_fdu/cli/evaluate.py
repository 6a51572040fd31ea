"""`diffusers-fdu evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Named, named_options, takes
from .pipeline import load_pipeline, resolve_placement

EXAMPLES = """Examples:

diffusers-fdu evaluate runs/no-dog --protocol quick --report runs/report

diffusers-fdu evaluate runs/no-dog --attack inversion --attack greedy-search --report runs/report

diffusers-fdu evaluate me/no-snoopy --model <folder> --clip openai/clip-vit-base-patch32
  --protocol mace --set num_inference_steps=20 --report runs/report
"""

KNOWN = (
    "seeds",
    "num_inference_steps",
    "guidance_scale",
    "pipeline_kwargs",
    "attack_seeds",
    "batch",
    "data_parallel",
)
"""What `--config` and `--set` say: fields of `EvaluationConfig`."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Named):
    """Options of the command."""

    adapter: Annotated[str, typer.Argument(help="Folder of an adapter, or its Hub id.")]
    protocol: Annotated[
        str, typer.Option(help="quick, unlearncanvas, concept-ablation or mace.")
    ] = "quick"
    report: Annotated[
        Path, typer.Option(help="Folder for JSON, Markdown, HTML page and pictures.")
    ] = Path("report")
    model: Annotated[
        str | None,
        typer.Option(help="Folder, Hub id or `emoji`; by default what the recipe says."),
    ] = None
    target: Annotated[
        list[str] | None, typer.Option(help="Only this one of what it unlearned; may be repeated.")
    ] = None
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack, or `all`; may be repeated.")
    ] = None
    clip: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP.")] = None
    classifier: Annotated[
        str | None, typer.Option(help="Folder or Hub id of an image classifier, as the judge.")
    ] = None
    seed: Annotated[list[int] | None, typer.Option(help="Of the pictures; may be repeated.")] = (
        None
    )


@takes(EvaluateOptions)
def evaluate(given: EvaluateOptions) -> None:
    """Measure what an adapter made its model forget, and what it kept; go on if interrupted.

    The figures also go to `evaluation.json` in the adapter's folder, for its model card. --config
    and --set take num_inference_steps, guidance_scale and pipeline_kwargs of the runs, seeds,
    attack_seeds, batch, and data_parallel, to share the drawing with `accelerate launch`.
    """
    options = named_options(given, {"seeds": given.seed or None}, KNOWN)
    from ..adapters.download import local_folder
    from ..adapters.evaluation_file import write_evaluation
    from ..adapters.read import read_adapter
    from ..evaluation.adapter_under_test import concepts_of
    from ..evaluation.attacks.run import check_names
    from ..evaluation.evaluate import EvaluationConfig
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.protocols import resolve_protocol
    from ..evaluation.report.pages import to_markdown, write_report
    from ..evaluation.result import to_json
    from ..utils.distributed import Processes
    from ..utils.io import writable_folder

    resolve_protocol(given.protocol)
    names = check_names(given.attack or ())
    found = read_adapter(local_folder(given.adapter))
    concepts = concepts_of(found.recipe, given.target or ())
    folder = writable_folder(given.report)
    model = given.model or _model_of(found.recipe, given.adapter)
    placed = resolve_placement(given.device, given.dtype)
    pipe = load_pipeline(model, placed.device, placed.dtype)
    result = run(
        pipe,
        given.adapter,
        given.protocol,
        judge=_classifier(given.classifier, placed.device),
        clip=given.clip,
        attacks=names,
        concepts=concepts,
        config=EvaluationConfig(**options, folder=folder / "pictures"),
    )
    if not Processes(options.get("data_parallel", False)).is_main:
        return
    write_report(result, folder)
    if Path(given.adapter).is_dir():
        write_evaluation(to_json(result), Path(given.adapter))
    typer.echo(to_markdown(result))
    typer.echo(f"written to {folder}: evaluation.json, report.md, report.html, pictures")


def _model_of(recipe: object, adapter: str) -> str:
    """What the adapter was trained on.

    Raises:
        ValueError: if its recipe does not say.
    """
    from ..adapters.recipe import EMBEDDED
    from ..adapters.summary import mapping

    base = mapping(recipe).get("base_model")
    if base == EMBEDDED:
        return "emoji"
    if not isinstance(base, str) or not base:
        raise ValueError(f"the recipe of {adapter!r} names no model: pass --model")
    return base


def _classifier(source: str | None, device: str) -> Any:
    """A judge of transformers' image classification; None without a source."""
    if source is None:
        return None
    from transformers import pipeline

    from ..evaluation.judges import ClassifierJudge

    return ClassifierJudge(pipeline("image-classification", source, device=device))
