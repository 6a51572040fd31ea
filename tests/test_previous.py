"""Adapters, recipes and evaluations that an earlier version wrote can still be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from families import FAMILIES

from diffusers_fdu import describe, load_unlearned, render_card, retrain
from diffusers_fdu.adapters.adapter_file import WEIGHTS_NAME
from diffusers_fdu.adapters.evaluation_file import read_evaluation
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.evaluation.report.pages import to_markdown
from diffusers_fdu.evaluation.result import from_json

FOLDER = Path(__file__).parent / "data" / "previous"
RECIPES = sorted(path.parent.name for path in FOLDER.glob("*/recipe.json"))


def recipe(name: str) -> dict:
    return json.loads((FOLDER / name / "recipe.json").read_text())


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ("peft", "older")])
def test_a_recipe_is_trained_again(name) -> None:
    """For one step: its options, concepts and f are understood."""
    facts = recipe(name)
    facts["steps_done"] = 1
    facts["config"]["trajectories"] = 2
    worker = retrain(load_emoji_pipeline(), facts, progress=False)
    assert [c["target"] for c in worker.recipe["concepts"]] == [
        c["target"] for c in facts["concepts"]
    ]
    assert worker.recipe["f"] == facts["f"]
    changed = {"trajectories", "micro_batch_size", "steps_done"}
    for key, value in worker.recipe["config"].items():
        assert key in changed or value == facts["config"][key], key


def test_a_recipe_is_trained_to_the_same_adapter() -> None:
    facts = recipe("kl_lora")
    worker = retrain(load_emoji_pipeline(), facts, progress=False)
    assert worker.recipe["distance"]["last"] == pytest.approx(facts["distance"]["last"], rel=1e-3)


def test_an_adapter_is_loaded_and_described() -> None:
    pipe = load_emoji_pipeline()
    pipe.load_lora_weights(str(FOLDER / "variational"), adapter_name="earlier")
    assert pipe.get_active_adapters() == ["earlier"]
    told = str(describe(FOLDER / "variational"))
    assert "dog" in told and "variational" in told
    assert read_adapter(FOLDER / "variational").recipe == recipe("variational")


def test_an_adapter_of_pefts_format_is_loaded() -> None:
    pipe = FAMILIES["pixart_sigma"].build()
    load_unlearned(pipe, FOLDER / "peft", "earlier")
    assert "earlier" in pipe.transformer.peft_config


def test_an_evaluation_is_read_reported_and_put_on_a_card(tmp_path) -> None:
    folder = FOLDER / "variational"
    written = read_evaluation(folder / WEIGHTS_NAME)
    metrics = written["metrics"]
    report = to_markdown(from_json(folder / "evaluation.json"))
    card = render_card(Path(shutil.copytree(folder, tmp_path / "run")), "me/dog")
    for text in (report, card):
        assert f"{metrics['ua']['value']:.1%}" in text
        assert f"{metrics['ira']['value']:.1%}" in text
