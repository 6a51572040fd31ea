"""The command line in several processes, as `accelerate launch` starts them, on gloo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from launched import command
from safetensors.torch import load_file

from diffusers_fdu.cli import unlearn_job
from diffusers_fdu.utils.io import writable_folder

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
FSDP = ("--config_file", str(ROOT / "examples" / "fsdp.yaml"), "--mixed_precision", "no")
TWO = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
COMMAND = ("unlearn", "--model", "emoji", "--f", "kl", "--steps", "4")
DATA = ("--set", "trajectories=4", "--set", "retain_weight=0", "--guidance-scale", "1")
SMALL = (*DATA, "--set", "early_stop=0", "--set", "learning_rate=1e-3", "--set", "init=lora")
DOG = ("--target", "dog", "--anchor", "cat")
FILE, RECIPE = "pytorch_lora_weights.safetensors", "recipe.json"


def start(*arguments: str, launch: tuple[str, ...]) -> subprocess.Popen:
    launcher = ("-m", "accelerate.commands.launch", *launch, "--main_process_port", "0")
    env = {"PYTHONPATH": f"{HELPERS}:{ROOT}", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "diffusers_fdu", *COMMAND, *SMALL, *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, launch: tuple[str, ...]) -> str:
    with start(*arguments, launch=launch) as process:
        output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return output


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What one process trains with a batch of 4."""
    folder = tmp_path_factory.mktemp("alone")
    done = command(*COMMAND, *SMALL, *DOG, "--set", "batch_size=4", "--output-dir", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / FILE)


def check_same(folder: Path, alone: dict[str, torch.Tensor]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [FILE, RECIPE]
    found = load_file(folder / FILE)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4)
    moved = max(value.abs().max() for name, value in alone.items() if "lora_B" in name)
    assert moved > 2e-3  # it starts at 0


def test_processes_train_one_adapter(tmp_path, alone) -> None:
    """Which the main one writes: it alone speaks."""
    folder = str(tmp_path / "out")
    output = run(*DOG, "--set", "batch_size=2", "--output-dir", folder, launch=TWO)
    assert output.count("4 steps, divergence") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_same(tmp_path / "out", alone)
    performance = json.loads((tmp_path / "out" / RECIPE).read_text())["performance"]
    assert performance["data_parallel"] and not performance["shard"]


def test_processes_that_shard_go_through_a_list_together(tmp_path, alone) -> None:
    concepts = tmp_path / "concepts.yaml"
    concepts.write_text("- {target: dog, anchor: cat}\n- {target: fox, anchor: cow}\n")
    folder = tmp_path / "out"
    arguments = ("--concepts", str(concepts), "--set", "batch_size=2", "--output-dir", str(folder))
    output = run(*arguments, launch=FSDP)
    assert re.findall(r"^(\w+): 4 steps", output, re.MULTILINE) == ["dog", "fox"]
    check_same(folder / "dog", alone)
    assert sorted(path.name for path in (folder / "fox").iterdir()) == [FILE, RECIPE]
    performance = json.loads((folder / "fox" / RECIPE).read_text())["performance"]
    assert performance["data_parallel"] and performance["shard"]


def kill(process: subprocess.Popen) -> None:
    """With all that it started: the launcher gives its processes groups of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family, timeout=20)


def times(folder: Path) -> dict[Path, int]:
    """When the files of the finished adapters were written."""
    done = [path.parent for path in folder.glob(f"*/{RECIPE}")]
    return {path: path.stat().st_mtime_ns for one in done for path in one.iterdir()}


def test_a_killed_list_goes_on_with_what_is_missing(tmp_path) -> None:
    concepts, folder = tmp_path / "concepts.yaml", tmp_path / "out"
    pairs = {"dog": "cat", "fox": "cow", "banana": "carrot"}
    lines = [f"- {{target: {one}, anchor: {other}}}" for one, other in pairs.items()]
    concepts.write_text("\n".join(lines))
    arguments = ("--concepts", str(concepts), "--set", "batch_size=2", "--output-dir", str(folder))
    process = start(*arguments, launch=TWO)
    while not list(folder.glob(f"*/{RECIPE}")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    kill(process)
    before = times(folder)
    assert 0 < len(list(folder.glob(f"*/{RECIPE}"))) < len(pairs)

    output = run(*arguments, launch=TWO)
    after = times(folder)
    assert {path: after[path] for path in before} == before
    missing = set(pairs) - {path.parent.name for path in before}
    assert set(re.findall(r"^(\w+): 4 steps", output, re.MULTILINE)) == missing
    assert f"{len(pairs) - len(missing)} of 3 concepts are done already" in output
    for target, anchor in pairs.items():
        recipe = json.loads((folder / target / RECIPE).read_text())
        assert [(c["target"], c["anchor"]) for c in recipe["concepts"]] == [(target, anchor)]
        assert not recipe["performance"]["data_parallel"]
        assert load_file(folder / target / FILE)


def test_one_bad_concept_does_not_stop_the_others(tmp_path) -> None:
    concepts, folder = tmp_path / "concepts.yaml", tmp_path / "out"
    long = "word " * 90
    concepts.write_text(f"- {{target: {long}, name: bad}}\n- {{target: fox, anchor: cow}}\n")
    done = command(*COMMAND, *SMALL, "--concepts", str(concepts), "--output-dir", str(folder))
    assert done.returncode == 1
    assert "error: 1 of 2 concepts failed: bad: prompt" in done.stderr
    assert "fox: 4 steps" in done.stdout and (folder / "fox" / FILE).exists()


def test_processes_may_try_a_folder_at_the_same_time(tmp_path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: writable_folder(tmp_path / "out"), range(400)))
    assert len(found) == 400 and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}, True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_USE_FSDP": "false", "WORLD_SIZE": "2"}, False),
    ],
)
def test_what_the_launcher_says_of_sharding(monkeypatch, env, expected) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert unlearn_job.launched_sharding() is expected
    if expected:
        monkeypatch.setenv("FSDP_VERSION", "1")
        with pytest.raises(ValueError, match="set fsdp_version to 2"):
            unlearn_job.launched_sharding()
