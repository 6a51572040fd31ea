"""`diffusers-fdu evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .inputs import load_pipeline, resolve_placement, values
from .options import Device, Dtype

EVALUATE_EXAMPLES = """Examples:

diffusers-fdu evaluate runs/no-dog --protocol quick --report runs/report

diffusers-fdu evaluate runs/no-dog --attack inversion --attack greedy-search --report runs/report

diffusers-fdu evaluate me/no-snoopy --model <folder> --clip openai/clip-vit-base-patch32
  --protocol mace --report runs/report
"""


def evaluate(
    adapter: Annotated[str, typer.Argument(help="Folder of an adapter, or its Hub id.")],
    protocol: Annotated[
        str, typer.Option(help="quick, unlearncanvas, concept-ablation or mace.")
    ] = "quick",
    report: Annotated[
        Path, typer.Option(help="Folder for JSON, Markdown, HTML page and pictures.")
    ] = Path("report"),
    model: Annotated[
        str | None, typer.Option(help="Folder, Hub id or `emoji`; none: what the recipe says.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Only this one of what it unlearned; may be repeated."),
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="An attack, or `all`; may be repeated.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP.")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Folder or Hub id of an image classifier, as the judge.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of the pictures; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of a run; none: the protocol's.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Of a run; none: the protocol's.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An argument of the runs as name=value; may be repeated."),
    ] = None,
    data_parallel: Annotated[
        bool, typer.Option("--data-parallel", help="Share the drawing (accelerate launch).")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Measure what an adapter made its model forget, and what it kept; go on if interrupted.

    The figures also go to `evaluation.json` in the adapter's folder, for its model card.
    """
    from ..adapters.download import local_folder
    from ..adapters.measured import write_evaluation
    from ..adapters.read import read_adapter
    from ..evaluation.attacks.run import check_names
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.protocols import protocol as chosen
    from ..evaluation.report.files import to_json, write_report
    from ..evaluation.report.pages import to_markdown
    from ..evaluation.subject import concepts_of
    from ..utils.distributed import Processes
    from ..utils.io import writable_folder

    chosen(protocol)
    names = check_names(attack or ())
    found = read_adapter(local_folder(adapter))
    concepts = concepts_of(found.recipe, target or ())
    folder = writable_folder(report)
    placed = resolve_placement(device, dtype)
    pipe = load_pipeline(model or _model_of(found.recipe, adapter), placed.device, placed.dtype)
    result = run(
        pipe,
        adapter,
        protocol,
        judge=_classifier(classifier, placed.device),
        clip=clip,
        attacks=names,
        concepts=concepts,
        seeds=seed or None,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        pipeline_kwargs=values(options),
        folder=folder / "pictures",
        data_parallel=data_parallel,
    )
    if not Processes(data_parallel).is_main:
        return
    write_report(result, folder)
    if Path(adapter).is_dir():
        write_evaluation(to_json(result), Path(adapter))
    typer.echo(to_markdown(result))
    typer.echo(f"written to {folder}: evaluation.json, report.md, report.html, pictures")


def _model_of(recipe: object, adapter: str) -> str:
    """What the adapter was trained on.

    Raises:
        ValueError: if its recipe does not say.
    """
    from ..adapters.contents import EMBEDDED
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
