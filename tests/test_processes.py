"""Two processes on gloo against one with twice the batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_fdu.processes import Processes

TESTS = Path(__file__).parent
LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
OPTIONS = {
    "plain": [],
    "surgery and mined": ['retain_from="mined"', "named=false", "surgery=true"],
    "accumulated": ["gradient_accumulation_steps=2"],
    "variational": ['estimator={"warmup_steps": 2}'],
    "noised anew": ['states="renoise"'],
}


def run(path: Path, together: bool, options: list[str]) -> dict:
    size = 2 if together else 4
    command = [sys.executable, *(LAUNCH if together else [])]
    command += [str(TESTS / "together.py"), str(path), f"batch_size={size}", *options]
    env = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env={**__import__("os").environ, **env}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return torch.load(path)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_processes_do_what_one_does(tmp_path, options) -> None:
    alone, both = (run(tmp_path / f"{one}.pt", one, options) for one in (False, True))
    assert alone["buffer"] == both["buffer"]
    for own, other in zip(alone["history"], both["history"], strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-6), name
    moved = 0.0
    for name, value in alone["weights"].items():
        torch.testing.assert_close(both["weights"][name], value, rtol=0, atol=2e-4)
        moved = max(moved, value.abs().max().item())
    assert moved > 0.02


def test_one_process_is_alone() -> None:
    alone = Processes()
    assert (alone.rank, alone.count, alone.is_main) == (0, 1, True)
    assert alone.own([1, 2, 3]) == alone.gather([1, 2, 3]) == [1, 2, 3]
    value = torch.ones(2)
    alone.mean_([value])
    assert torch.equal(value, torch.ones(2))


@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_parts_are_disjoint_and_whole(length) -> None:
    parts = []
    for rank in range(3):
        one = Processes()
        one.rank, one.count = rank, 3
        parts += one.own(range(length))
    assert parts == list(range(length))
