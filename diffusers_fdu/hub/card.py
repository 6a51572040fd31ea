"""The model card: what the recipe, the weights and the evaluation say, and nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ..adapters.adapter_file import AdapterFile
from ..adapters.evaluation_file import metric_reports
from ..adapters.hub_files import PICTURE, SHEET_NAME, check_repo_id, files_to_push, is_model_id
from ..adapters.info import AdapterInfo, adapter_info
from ..adapters.read import read_adapter
from ..adapters.recipe import EMBEDDED
from ..adapters.summary import concept_summary, concepts, mapping, recipe_rows, text_or_empty
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
        directory: the folder that the adapter was saved to.
        repo_id: the repository, `user/name`, that the card's lines load it from.
        base_model: the base model's name on the Hub, `org/name`, or "" if it is not there; by
            default the one that the recipe names.
        license: the base model's license, as the Hub names it, such as "apache-2.0"; by default
            the card states none.

    Raises:
        ValueError: if the folder holds no adapter to be trusted, its evaluation is damaged, or
            its base model is not known.

    Example:
        >>> "# Forgets “dog”" in render_card("forget-dog", "user/no-dog")
        True
    """
    check_repo_id(repo_id)
    adapter_file = read_adapter(directory)
    return card_text(adapter_file, repo_id, base_model_id(adapter_file, base_model), license)


def base_model_id(adapter_file: AdapterFile, base_model: str | None) -> str | None:
    """The base model's name on the Hub; None if it is not there. See `render_card`."""
    name = base_model or adapter_file.recipe.get("base_model")
    if base_model == "" or (base_model is None and name == EMBEDDED):
        return None
    if is_model_id(name):
        return name
    if base_model:
        raise ValueError(f"base_model {base_model!r} is no name on the Hub: write org/name")
    raise ValueError(
        f"the recipe's base_model is {name!r}, no name on the Hub: pass base_model='org/name', or "
        "'' if it is not there"
    )


def card_text(
    adapter_file: AdapterFile, repo_id: str, base: str | None, license: str | None
) -> str:
    """The card of an adapter that was read; without `base` its base model is not on the Hub."""
    names = files_to_push(adapter_file)
    info, recipe = adapter_info(adapter_file), adapter_file.recipe
    if info.unmeasured:
        raise ValueError(info.unmeasured)
    adapter_name = recipe.get("adapter_name") or ""
    is_plain = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", adapter_name)
    pictures = [name for name in names if PICTURE.fullmatch(name)]
    text = render(
        "hub/card.md",
        info=info,
        metadata=_metadata(info, pictures, repo_id, base, license).to_yaml(),
        repo_id=repo_id,
        base=base,
        is_embedded=recipe.get("base_model") == EMBEDDED,
        pipeline=text_or_empty(recipe.get("pipeline")) or "model",
        adapter_name=adapter_name if is_plain else "forget",
        has_gallery=bool(pictures),
        sheet=SHEET_NAME if SHEET_NAME in names else None,
        concepts=[concept_summary(concept) for concept in concepts(recipe)],
        needs=list(mapping(recipe.get("active_adapters"))),
        metrics=metric_reports(info.evaluation),
        seeds=seeds_text(info.evaluation.get("seeds", [])),
        recipe=[row for row in recipe_rows(recipe) if row[0] not in ELSEWHERE],
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds in words: "1 to 3" for consecutive ones, or the first twenty of a list."""
    numbers = sorted(set(seeds))
    if len(numbers) > 2 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:20])) + (", …" if numbers[20:] else "")


def _metadata(
    info: AdapterInfo, pictures: Sequence[str], repo_id: str, base: str | None, license: str | None
) -> ModelCardData:
    """The card's front matter; its figures are for the Hub's own tables."""
    evaluation = info.evaluation
    is_video = str(info.recipe.get("pipeline")).startswith(VIDEO)
    task = "text-to-video" if is_video else "text-to-image"
    targets = [TARGET_TAG + slug(concept["target"]) for concept in concepts(info.recipe)]
    widget = [
        {"text": cleaned(prompt_of(info.path / name), 300) or "-", "output": {"url": name}}
        for name in pictures
    ]
    results = [
        EvalResult(
            task_type=task,
            dataset_type="prompts",
            dataset_name=cleaned(f"{evaluation['images']} pictures, by {evaluation['judge']}"),
            metric_type=report.name,
            metric_name=report.title,
            metric_value=report.metric.value,
        )
        for report in metric_reports(evaluation)
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        license=cleaned(license) if license else None,
        pipeline_tag=task,
        tags=list(dict.fromkeys([*TAGS, task, *targets]))[:MAX_TAGS],
        widget=widget or None,
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
    )
