"""The model card: what the recipe, the weights and the evaluation say, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..adapters.adapter_file import AdapterFile
from ..adapters.contents import (
    EMBEDDED,
    PICTURE,
    SHEET_NAME,
    check_repo_id,
    contents,
    is_repo_id,
    weights_path,
)
from ..adapters.measured import EVALUATION_NAME, read_evaluation
from ..adapters.read import read_adapter
from ..adapters.summary import METRICS, mapping
from . import facts
from .markup import cleaned, escaped, slug
from .preview import prompt_of

TEMPLATE = Path(__file__).parent / "card.md"
OWN_TAG = "diffusers-fdu"
TARGET_TAG = "unlearns:"
TAGS = ("diffusers", "lora", "template:diffusion-lora", "concept-unlearning", OWN_TAG)
MAX_TAGS = 32
VIDEO = ("Wan", "LTX", "HunyuanVideo", "CogVideo", "Mochi", "Allegro", "TextToVideo", "Latte")
NOT_ON_THE_HUB = ""


def render_card(
    directory: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """The model card of an adapter, as `push` writes it to README.md.

    Args:
        directory: what the adapter was saved to.
        repo_id: `user/name`, as the card's lines load it.
        base_model: see `push`.
        licence: see `push`.

    Raises:
        ValueError: if the folder holds no adapter to be trusted, its evaluation is damaged, or
            its base model is not known.
    """
    check_repo_id(repo_id)
    found = read_adapter(directory)
    return card(found, list(contents(found)), repo_id, base_name(found, base_model), licence)


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
    if given == NOT_ON_THE_HUB or own == EMBEDDED:
        return None
    if isinstance(own, str) and is_repo_id(own) and not Path(own).is_dir():
        return own
    known = f"its recipe says {own!r}, which is no name there" if own else "its recipe says none"
    raise ValueError(
        f"which model on the Hub is this adapter for? {known}: pass base_model='org/name', or '' "
        "if it is not on the Hub"
    )


def card(
    found: AdapterFile,
    names: Sequence[str],
    repo_id: str,
    base: str | None,
    licence: str | None = None,
) -> str:
    """The card's text.

    Args:
        found: the adapter.
        names: of the files that go with it.
        repo_id: `user/name`.
        base: name of the base model on the Hub; None: it is not there.
        licence: of the base model, as the Hub names licences; None: none is stated.
    """
    recipe, evaluation = found.recipe, None
    if EVALUATION_NAME in names:
        evaluation = read_evaluation(found.folder, weights_path(found))
    pictures = [name for name in names if PICTURE.fullmatch(name)]
    rows = [facts.concept_row(concept) for concept in facts.concepts(recipe)]
    targets = facts.quoted(concept["target"] for concept in facts.concepts(recipe))
    data = _metadata(found, pictures, repo_id, base, licence, evaluation)
    measured = mapping(evaluation)
    active = mapping(recipe.get("active_adapters"))
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=f"Forgets {targets}" if rows else escaped(repo_id.split("/")[1]),
        base=_base_words(recipe, base),
        targets=targets or "what its recipe does not say",
        has_gallery=bool(pictures),
        sheet=SHEET_NAME if SHEET_NAME in names else None,
        concepts=rows,
        objective=facts.objective(recipe),
        needs=facts.quoted(active),
        metrics=[facts.metric_row(*item) for item in measured.get("metrics", {}).items()],
        protocol=escaped(measured.get("protocol", ""), 2000),
        images=facts.worded(measured.get("images")),
        seeds=facts.seeds(measured.get("seeds", [])),
        judge=escaped(measured.get("judge", ""), 200),
        layers=facts.layers(found),
        training=facts.training(recipe),
        has_recipe="config" in recipe,
        **_lines(found, repo_id, base),
    )
    return re.sub(r"\n{3,}", "\n\n", str(text)).rstrip() + "\n"


def _metadata(
    found: AdapterFile,
    pictures: Sequence[str],
    repo_id: str,
    base: str | None,
    licence: str | None,
    evaluation: Mapping[str, Any] | None,
) -> ModelCardData:
    """The card's front matter."""
    task = (
        "text-to-video" if str(found.recipe.get("pipeline")).startswith(VIDEO) else "text-to-image"
    )
    targets = [concept["target"] for concept in facts.concepts(found.recipe)]
    tags = [*TAGS, task, *(TARGET_TAG + slug(target) for target in targets)]
    shown = [
        {"text": cleaned(prompt_of(found.folder / name), 300) or "-", "output": {"url": name}}
        for name in pictures
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="diffusers",
        license=cleaned(licence) if licence else None,
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags))[:MAX_TAGS],
        widget=shown or None,
        **_results(repo_id, task, evaluation),
    )


def _results(repo_id: str, task: str, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was measured, for the Hub's own tables; nothing if nothing was."""
    if evaluation is None:
        return {}
    results = [
        EvalResult(
            task_type=task,
            dataset_type="prompts",
            dataset_name=cleaned(f"{evaluation['images']} pictures, by {evaluation['judge']}"),
            metric_type=name,
            metric_name=METRICS.get(name, name).split(":")[0],
            metric_value=metric["value"],
        )
        for name, metric in evaluation["metrics"].items()
    ]
    return {"model_name": repo_id.split("/")[1], "eval_results": results}


def _base_words(recipe: Mapping[str, Any], base: str | None) -> str:
    if base:
        return f"[{base}](https://huggingface.co/{base})"
    if recipe.get("base_model") == EMBEDDED:
        return "the emoji model that is embedded in diffusers-fdu"
    pipeline = recipe.get("pipeline")
    own = f"a {escaped(pipeline)}" if isinstance(pipeline, str) and pipeline else "a model"
    return f"{own} that is not on the Hub"


def _lines(found: AdapterFile, repo_id: str, base: str | None) -> dict[str, str | None]:
    """Code that loads it; names in it are the Hub's, or letters and digits."""
    own = found.recipe.get("adapter_name")
    name = own if isinstance(own, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", own) else "forget"
    first = (
        'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("{}")'
    )
    if base:
        first = first.format(base)
    elif found.recipe.get("base_model") == EMBEDDED:
        first = (
            "from diffusers_fdu.emoji import load_emoji_pipeline\n\npipe = load_emoji_pipeline()"
        )
    else:
        first = first.format("<the model>")
    if found.format == "peft":
        return {
            "loading": "from diffusers_fdu import load_unlearned\n"
            f'{first}\nload_unlearned(pipe, "{repo_id}")',
            "without_library": f"pipe.{found.component} = peft.PeftModel.from_pretrained("
            f'pipe.{found.component}, "{repo_id}")',
        }
    second = ", load_into_transformer_2=True" if found.component == "transformer_2" else ""
    load = f'pipe.load_lora_weights("{repo_id}", adapter_name="{name}"{second})'
    other = 'pipe.load_lora_weights("<another>", adapter_name="other")'
    return {
        "loading": f"{first}\n{load}",
        "strength": f'pipe.set_adapters(["{name}"], [1.0])',
        "stacking": f'{other}\npipe.set_adapters(["{name}", "other"], [1.0, 1.0])',
    }
