from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import latents
from safetensors.torch import load_file, save_file
from tiny import unlearner
from typer.testing import CliRunner

from diffusers_fdu import Concept, NegativeGuidance, Robust, Variational, merge
from diffusers_fdu.adapters import summary
from diffusers_fdu.adapters.export.export import export
from diffusers_fdu.adapters.info import describe
from diffusers_fdu.adapters.write import write_adapter
from diffusers_fdu.cli import app
from diffusers_fdu.utils.io import as_json

LAYERS = [f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{p}" for p in "kv"]


def write(folder: Path, recipe: Any = None, format: str = "diffusers") -> Path:
    """Two layers of rank 2 and alpha 3, the second ten times the first."""
    draws = torch.Generator().manual_seed(0)
    state = {}
    for i, layer in enumerate(LAYERS):
        state[f"{layer}.lora_A.weight"] = torch.randn(2, 768, generator=draws)
        state[f"{layer}.lora_B.weight"] = torch.randn(8, 2, generator=draws) * 10**i
    config = {"r": 2, "lora_alpha": 3, "target_modules": ["attn2.to_k", "attn2.to_v"]}
    folder.mkdir(exist_ok=True)
    write_adapter(folder, format, "unet", state, config)  # type: ignore[arg-type]
    if recipe is not None:
        (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def rows(info: Any) -> dict[str, list[str]]:
    """What is printed, by label."""
    found: dict[str, list[str]] = {}
    for label, text in info.rows:
        assert text in str(info)
        found.setdefault(label, []).append(text)
    return found


def test_sizes_and_norms_are_those_of_the_update(tmp_path) -> None:
    info = describe(write(tmp_path))
    file = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    for layer in LAYERS:
        half = {h: file[f"unet.{layer}.lora_{h}.weight"] for h in "AB"}
        update = 1.5 * half["B"] @ half["A"]
        assert info.norms[layer] == pytest.approx(update.norm().item(), rel=1e-5)
    assert info.norm == pytest.approx(math.hypot(*info.norms.values()))
    assert info.ranks == dict.fromkeys(LAYERS, 2) and info.alphas == dict.fromkeys(LAYERS, 3.0)
    assert info.parameters == 2 * (2 * 768 + 8 * 2)
    assert info.bytes == (tmp_path / "pytorch_lora_weights.safetensors").stat().st_size
    told = rows(info)
    assert told["least changed"][0].endswith("attn2.to_k")
    assert told["most changed"][0].endswith("attn2.to_v")
    assert (told["rank"], told["alpha"]) == (["2"], ["3"])
    assert told["adapted"] == ["2 layers of the unet"]
    assert told["unlearns"] == ["not known: there is no recipe.json beside it"]
    assert told["load"] == [f"pipe.load_lora_weights({str(tmp_path)!r})"]


def test_what_was_trained_is_told(tmp_path, pipe) -> None:
    worker = unlearner(pipe, steps=2, seed=3)
    concepts = [
        Concept("dog", "cat", aliases=["hound"]),
        Concept("tree", NegativeGuidance(1.5)),
        Concept("blue", kind="style"),
    ]
    worker.unlearn(concepts, f="kl")
    folder = worker.save(tmp_path / "own")
    info = describe(folder)
    told = rows(info)
    assert str(info).startswith("forget-dog-tree-blue\n")
    assert told["for"] == ["StableDiffusionPipeline"]
    assert told["unlearns"] == [
        "dog -> cat (object; also hound)",
        "tree -> away from it, negative guidance 1.5 (object)",
        "blue -> what the empty prompt gives (style)",
    ]
    recipe = worker.recipe
    first, last = (recipe["distance"][end] for end in ("first", "last"))
    assert told["distance"] == [f"{first:.4g} -> {last:.4g}, {last / first:.2%} left"]
    assert told["divergence"] == ["kl"] and told["estimator"] == ["exact"]
    assert told["steps"] == ["2 of at most 2"] and told["batch"] == ["4"]
    assert told["learning rate"] == ["0.01"] and told["seed"] == ["3"]
    assert "sigma" in told and "torch" in told["versions"][0]
    again = latents(pipe)
    pipe.unload_lora_weights()
    eval(told["load"][0], {"pipe": pipe})  # noqa: S307  the line works as it stands
    assert torch.equal(latents(pipe), again)


CRITIC = "learning rate 0.003, warmup steps 30, critic steps 8, gradient penalty 10, width 64"
SEARCH = "every 5, steps 20, batch 16, tokens 1, prompts 8, pictures 32"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("estimator", "exact", "exact"),
        ("estimator", "variational", "variational"),
        ("estimator", asdict(Variational()), f"variational ({CRITIC})"),
        ("estimator", as_json(Variational()), f"variational ({CRITIC})"),
        ("robust", True, "with the defaults"),
        ("robust", asdict(Robust()), f"robust ({SEARCH})"),
        ("robust", as_json(Robust()), f"robust ({SEARCH})"),
        ("robust", False, None),
    ],
)
def test_options_that_are_objects_are_told_by_their_fields(name, given, expected) -> None:
    told = dict(summary.recipe_rows({"config": {name: given}}))
    assert told.get(name) == expected


def test_adapters_it_was_trained_beside_are_named(tmp_path) -> None:
    recipe = {"active_adapters": {"no-cat": 0.5}, "start": {"adapter_name": "older"}}
    told = rows(describe(write(tmp_path, recipe)))
    assert told["beside"] == [
        "went on from older",
        "the active adapter no-cat at strength 0.5: load it, too",
    ]


def test_what_was_measured_is_told(tmp_path) -> None:
    weights = write(tmp_path, {}) / "pytorch_lora_weights.safetensors"
    assert "measured" not in rows(describe(tmp_path))
    metrics = {"ua": {"value": 0.975, "low": 0.91, "high": 0.993}, "cra": {"value": 0.5}}
    measured = {"protocol": "quick", "images": 640, "seeds": [], "judge": "j", "metrics": metrics}
    for known in ({}, {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}):
        (tmp_path / "evaluation.json").write_text(json.dumps({**measured, **known}))
        info = describe(tmp_path)
        assert info.evaluation == {**measured, **known} and info.unmeasured is None
        assert rows(info)["measured"] == [
            "UA 97.5% (91.0% to 99.3%)",
            "CRA 50.0%",
            "by the protocol: quick, 640 images",
        ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"weights_sha256": "0" * 64}, "evaluate these, or remove the file"),
        ({"judge": "\x1b[31m", "metrics": {"ua": {"value": 1e400}}}, "ua is out of range"),
        ({"protocol": "\x1b[31m", "metrics": {"\x1b[31m": 1}}, "no name of a metric"),
        ("{", "is no evaluation: "),
        ("[" * 100_000, "is no evaluation: "),
        ("[]", "holds no JSON object"),
    ],
)
def test_numbers_of_other_weights_are_not_shown(tmp_path, text, reason) -> None:
    write(tmp_path, {})
    metrics = {"ua": {"value": 0.975}}
    known = {"protocol": "quick", "images": 640, "seeds": [], "judge": "j", "metrics": metrics}
    content = text if isinstance(text, str) else json.dumps({**known, **text})
    (tmp_path / "evaluation.json").write_text(content)
    info = describe(tmp_path)
    assert info.evaluation == {} and "\x1b" not in str(info)
    assert len(rows(info)["measured"]) == 1 and reason in rows(info)["measured"][0]
    assert "97.5%" not in str(info)


def test_parts_of_a_merged_adapter_are_told(tmp_path) -> None:
    recipes = [
        {"adapter_name": f"no-{name}", "concepts": [{"target": name, "anchor": None}], "f": "kl"}
        for name in ("dog", "tree")
    ]
    parts = [write(tmp_path / str(i), recipe) for i, recipe in enumerate(recipes)]
    merge(parts, [1.0, 0.5]).save(tmp_path / "both")
    merge([tmp_path / "both", write(tmp_path / "plain")]).save(tmp_path / "all")
    told = rows(describe(tmp_path / "both"))
    assert told["unlearns"] == [f"{n} -> what the empty prompt gives" for n in ("dog", "tree")]
    assert told["merged"][0].startswith("2 adapters, method concat, 0.00% from")
    assert [r for r in told["merged"] if r.startswith("no-")] == [
        "no-dog at strength 1: dog -> what the empty prompt gives; divergence kl",
        "no-tree at strength 0.5: tree -> what the empty prompt gives; divergence kl",
    ]
    text = str(describe(tmp_path / "all"))
    assert "forget-dog-tree at strength 1" in text and "plain at strength 1" in text


def test_exported_files_and_peft_folders_are_described(tmp_path) -> None:
    recipe = {"pipeline": "StableDiffusionPipeline", "adapter_name": "x", "component": "unet"}
    recipe["concepts"] = [{"target": "dog", "anchor": "cat"}]
    own = describe(write(tmp_path / "own", recipe))
    path = export(tmp_path / "own", tmp_path / "out" / "x.safetensors")
    for source in (path, path.parent):
        found = describe(source)
        assert found.format == "kohya" and found.recipe == recipe
        assert list(found.norms.values()) == pytest.approx(list(own.norms.values()))
        assert rows(found)["unlearns"] == ["dog -> cat"]
        assert str(path) in rows(found)["load"][0]
    peft = describe(write(tmp_path / "peft", recipe, "peft"))
    assert peft.norms == pytest.approx(own.norms)
    assert rows(peft)["load"] == [f"diffusers_fdu.load_unlearned(pipe, {str(peft.path)!r})"]
    assert describe(tmp_path / "own" / "pytorch_lora_weights.safetensors") == own


def deep(depth: int) -> dict[str, Any]:
    return {"merged": [deep(depth - 1)]} if depth else {"f": "kl"}


NASTY: dict[str, Any] = {
    "adapter_name": "red\x1b[31m\nnext\u202e\ud800",
    "concepts": [{"target": "\x1b", "anchor": {"Other": 1}, "kind": 3, "aliases": "xy"}],
    "divergence": {"first": "a", "last": None},
    "distance": {"first": 0, "last": 1e400},
    "error": 10**400,
    "sigma": 3,
    "seconds": ["x"],
    "steps_done": "many",
    "config": {"estimator": {}, "batch_size": "y" * 500, "learning_rate": True},
    "versions": "1",
    "active_adapters": 5,
    "merged": [{}, deep(50)],
    "weights": "w",
    "start": {"a": {}},
}


def test_recipes_of_strangers_do_no_harm(tmp_path) -> None:
    text = str(describe(write(tmp_path, NASTY)))
    assert "\x1b" not in text and "\u202e" not in text
    assert max(map(len, text.splitlines())) < 400
    for name in NASTY:
        for value in (None, 3, "x", [], [[]], {}, {"first": {}}, True, [None], {"a": [1]}):
            str(told_or_refused(write(tmp_path, {name: value})))
    path = tmp_path / "x.safetensors"
    recipe = {**NASTY, "concepts": ["dog", {"target": ["a"]}], "merged": [3, None]}
    header = {"diffusers_fdu.recipe": json.dumps(recipe)}
    save_file(
        {"a.lora_down.weight": torch.ones(1, 1), "a.lora_up.weight": torch.ones(1, 1)},
        path,
        header,
    )
    assert "\x1b" not in str(describe(path))


def told_or_refused(folder: Path) -> Any:
    try:
        return describe(folder)
    except ValueError as error:
        assert "the recipe's" in str(error)
        return None


def test_folders_without_an_adapter_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        describe(tmp_path / "none")
    with pytest.raises(ValueError, match="holds neither"):
        describe(tmp_path)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_commands(tmp_path) -> None:
    folder = write(tmp_path / "own")
    out = tmp_path / "x.safetensors"
    done = command("export", str(folder), "--output", str(out), "--title", "No dogs")
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"written to {out}, {out.stat().st_size:,} bytes\n")
    done = command("info", str(out))
    assert done.exit_code == 0 and done.output == f"{describe(out)}\n"
    done = command("info", str(tmp_path / "nothing"))
    assert isinstance(done.exception, ValueError)
    for name in ("info", "export"):
        assert "Examples" in command(name, "--help").output
