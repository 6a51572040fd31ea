from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from launched import command as run
from typer.testing import CliRunner

from diffusers_fdu.cli import app, unlearn_job

COMMANDS = typer.main.get_command(app).commands


def test_help_has_every_command() -> None:
    command = [sys.executable, "-m", "diffusers_fdu", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.stdout and f"diffusers-fdu {command}" in result.stdout


UNLEARN = ("unlearn", "--model", "emoji", "--target", "dog", "--anchor", "cat")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--f", "helinger"), "unknown divergence 'helinger': choose kl"),
        (("--kind", "person"), "unknown kind 'person': choose object, style"),
        (("--target", "cat"), "target and anchor are both 'cat'"),
        (("--anchor", "fox", "--anchor", "cow"), "1 targets and 3 anchors"),
        (("--set", "surgery=yes"), "surgery must be True or False, got 'yes'"),
        (("--config", "no/such/file"), "cannot read 'no/such/file'"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--model", "no/such/folder"), "cannot load 'no/such/folder'"),
        (("--steps", "0"), "steps must be an integer of at least 1"),
    ],
)
def test_errors_are_one_line(tmp_path, extra, message) -> None:
    result = run(*UNLEARN, "--output-dir", str(tmp_path / "out"), *extra)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place(tmp_path) -> None:
    (tmp_path / "taken").write_text("mine")
    result = run(*UNLEARN, "--output-dir", str(tmp_path / "taken"))
    assert result.returncode == 1 and "cannot write to" in result.stderr


def test_demo_refuses_unknown_concepts(tmp_path) -> None:
    result = run("demo", "--target", "unicorn", "--output-dir", str(tmp_path))
    assert result.returncode == 1 and "no 'unicorn'" in result.stderr


def test_unlearn_writes_a_lora(tmp_path) -> None:
    folder = tmp_path / "lora"
    small = ("--steps", "2", "--set", "trajectories=2")
    result = run(*UNLEARN, "--f", "kl", "--output-dir", str(folder), *small)
    assert result.returncode == 0, result.stderr
    assert "2 steps, divergence" in result.stdout
    assert (folder / "pytorch_lora_weights.safetensors").stat().st_size > 1000
    assert json.loads((folder / "recipe.json").read_text())["f"] == "kl"


def test_unlearn_with_options_of_the_library(tmp_path) -> None:
    folder = tmp_path / "lora"
    result = run(
        *("unlearn", "--model", "emoji", "--target", "dog", "--target", "banana"),
        *("--set", "concept.negative_guidance=0.5", "--set", "surgery=true"),
        *("--set", "trajectories=2", "--set", "prefer=erase", "--f", "auto"),
        *("--steps", "2", "--output-dir", str(folder)),
    )
    assert result.returncode == 0, result.stderr
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["f"] == "chi2" and recipe["config"]["surgery"] is True
    assert [c["target"] for c in recipe["concepts"]] == ["dog", "banana"]
    assert recipe["concepts"][0]["anchor"] == {"NegativeGuidance": {"scale": 0.5}}


def test_compare_writes_a_table_and_goes_on(tmp_path) -> None:
    arguments = (
        *("compare", "--model", "emoji", "--target", "a red thing", "--anchor", "a blue thing"),
        *("--kind", "prompt", "--f", "kl", "--f", "tv", "--seeds", "1", "--strength", "1"),
        *("--set", "trajectories=2", "--set", "steps=2", "--output-dir", str(tmp_path)),
    )
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "balance: f=" in result.stdout
    assert (tmp_path / "comparison.md").read_text() in result.stdout
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000
    assert len(list((tmp_path / "cache").glob("*.json"))) == 3
    again = run(*arguments)
    assert again.stdout == result.stdout and "record" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concepts", "x.yaml", "--kind", "style"], "the list says what --kind would"),
        (["--concepts", "x.yaml", "--target", "dog"], "pass --target or --concepts"),
        (["--concepts", "x.yaml", "--set", "concept.aliases=[a]"], "the list says what concept"),
        (["--target", "dog", "--set", "checkpoint_every=-1"], "every must be an integer of at"),
        (["--target", "dog", "--set", "log_with=paper"], "unknown tracker 'paper'"),
        (["--target", "dog", "--set", "estimator=gan"], "unknown estimator 'gan'"),
        (["--target", "dog", "--set", "concept.prompts=no/file"], "cannot read prompts from 'no/"),
        (
            ["--target", "dog", "--target", "cow", "--set", "concept.aliases=[bull]"],
            "concept.aliases are for a single --target",
        ),
        (
            ["--target", "dog", "--anchor", "cat", "--set", "concept.negative_guidance=1"],
            "an anchor and negative_guidance do not go together",
        ),
        (["--target", "dog", "--set", "shard=true"], "for `accelerate launch` to say"),
        (["--target", "dog", "--set", "data_parallel=true"], "for `accelerate launch` to say"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, arguments, message
) -> None:
    monkeypatch.setattr(unlearn_job, "load_pipeline", None)
    result = CliRunner().invoke(
        app, ["unlearn", "--model", "emoji", "--output-dir", str(tmp_path), *arguments]
    )
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
