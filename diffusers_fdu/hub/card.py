"""The model card: what the recipe, the weights and the evaluation say, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..adapters.adapter_file import AdapterFile
from ..adapters.contents import EMBEDDED, PICTURE, SHEET_NAME, check_repo_id, contents, is_repo_id
from ..adapters.evaluation_file import MetricReport, metric_reports
from ..adapters.info import AdapterInfo, of_adapter
from ..adapters.read import read_adapter
from ..adapters.summary import concept_summary, concepts, mapping, rows, texts
from ..utils.markup import cleaned, render, slug
from .preview import prompt_of

OWN_TAG = "diffusers-fdu"
TARGET_TAG = "unlearns:"
TAGS = ("diffusers", "lora", "template:diffusion-lora", "concept-unlearning", OWN_TAG)
MAX_TAGS = 32
VIDEO = ("Wan", "LTX", "HunyuanVideo", "CogVideo", "Mochi", "Allegro", "TextToVideo", "Latte")
ELSEWHERE = ("for", "unlearns")  # rows of a recipe that the card has in a place of their own


def render_card(
    directory: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """The model card of an adapter, as `push` writes it to README.md.

    Args:
        directory: what the adapter was saved to.
        repo_id: `user/name`, as the card's lines load it.
        base_model: see `push`.
        license: see `push`.

    Raises:
        ValueError: if the folder holds no adapter to be trusted, its evaluation is damaged, or
            its base model is not known.
    """
    check_repo_id(repo_id)
    found = read_adapter(directory)
    return card(found, repo_id, base_name(found, base_model), license)


def base_name(found: AdapterFile, given: str | None) -> str | None:
    """The base model's name on the Hub; None if it is not there.

    Args:
        found: the adapter.
        given: `org/name`; "": it is not on the Hub; None: the recipe's.

    Raises:
        ValueError: if it is no such name, or the recipe has none.
    """
    if given:
        if not is_repo_id(given) or Path(given).is_dir():
            raise ValueError(f"base_model {given!r} is no name on the Hub: write org/name")
        return given
    own = found.recipe.get("base_model")
    if given == "" or own == EMBEDDED:
        return None
    if isinstance(own, str) and is_repo_id(own) and not Path(own).is_dir():
        return own
    known = f"its recipe says {own!r}, which is no name there" if own else "its recipe says none"
    raise ValueError(
        f"which model on the Hub is this adapter for? {known}: pass base_model='org/name', or '' "
        "if it is not on the Hub"
    )


def card(found: AdapterFile, repo_id: str, base: str | None, license: str | None = None) -> str:
    """The same of an adapter that was read.

    Args:
        found: the adapter.
        repo_id: `user/name`.
        base: name of the base model on the Hub; None: it is not there.
        license: of the base model, as the Hub names licenses; None: none is stated.

    Raises:
        ValueError: if a file beside it is damaged, or about other weights.
    """
    names = contents(found)
    info, recipe = of_adapter(found), found.recipe
    if info.unmeasured:
        raise ValueError(info.unmeasured)
    own = recipe.get("adapter_name")
    is_plain = isinstance(own, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", own)
    pictures = [name for name in names if PICTURE.fullmatch(name)]
    text = render(
        "hub/card.md",
        info=info,
        metadata=_metadata(info, pictures, repo_id, base, license).to_yaml(),
        repo_id=repo_id,
        base=base,
        is_embedded=recipe.get("base_model") == EMBEDDED,
        pipeline="".join(texts([recipe.get("pipeline")])) or "model",
        adapter_name=own if is_plain else "forget",
        has_gallery=bool(pictures),
        sheet=SHEET_NAME if SHEET_NAME in names else None,
        concepts=[concept_summary(concept) for concept in concepts(recipe)],
        needs=list(mapping(recipe.get("active_adapters"))),
        figures=metric_reports(info.evaluation),
        seeds=spread(info.evaluation.get("seeds", [])),
        recipe=[row for row in rows(recipe) if row[0] not in ELSEWHERE],
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def spread(numbers: Sequence[int]) -> str:
    """Whole numbers in words."""
    every = sorted(set(numbers))
    if len(every) > 2 and every[-1] - every[0] + 1 == len(every):
        return f"{every[0]} to {every[-1]}"
    return ", ".join(map(str, every[:20])) + (", …" if every[20:] else "")


def _metadata(
    info: AdapterInfo, pictures: Sequence[str], repo_id: str, base: str | None, license: str | None
) -> ModelCardData:
    """The card's front matter."""
    is_video = str(info.recipe.get("pipeline")).startswith(VIDEO)
    task = "text-to-video" if is_video else "text-to-image"
    targets = [concept["target"] for concept in concepts(info.recipe)]
    tags = [*TAGS, task, *(TARGET_TAG + slug(target) for target in targets)]
    shown = [
        {"text": cleaned(prompt_of(info.path / name), 300) or "-", "output": {"url": name}}
        for name in pictures
    ]
    results = [
        _result(figure, task, info.evaluation) for figure in metric_reports(info.evaluation)
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        license=cleaned(license) if license else None,
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags))[:MAX_TAGS],
        widget=shown or None,
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
    )


def _result(figure: MetricReport, task: str, evaluation: Mapping[str, Any]) -> EvalResult:
    """A number for the Hub's own tables."""
    return EvalResult(
        task_type=task,
        dataset_type="prompts",
        dataset_name=cleaned(f"{evaluation['images']} pictures, by {evaluation['judge']}"),
        metric_type=figure.name,
        metric_name=figure.meaning.title,
        metric_value=figure.metric.value,
    )
