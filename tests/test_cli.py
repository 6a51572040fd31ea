from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "diffusers_fdu", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )


UNLEARN = ("unlearn", "--model", "emoji", "--target", "dog", "--anchor", "cat")


@pytest.mark.parametrize("command", [(), ("unlearn",), ("demo",)])
def test_help_has_examples(command) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "diffusers-fdu" in result.stdout or not command
    if command:
        assert "Examples" in result.stdout


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--f", "helinger"), "unknown divergence 'helinger': choose kl"),
        (("--kind", "person"), "unknown kind 'person': choose object, style"),
        (("--target", "cat"), "target and anchor are both 'cat'"),
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
    result = run(*UNLEARN, "--f", "kl", "--output-dir", str(folder), "--steps", "2")
    assert result.returncode == 0, result.stderr
    assert "2 steps, divergence" in result.stdout
    assert (folder / "pytorch_lora_weights.safetensors").stat().st_size > 1000
    assert json.loads((folder / "recipe.json").read_text())["f"] == "kl"
