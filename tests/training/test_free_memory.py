"""Memory that a device could still give: its machine, container, address space and share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from diffusers_fdu.training import auto_fit
from diffusers_fdu.training.auto_fit import free_memory
from diffusers_fdu.training.memory import GIB

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_machine_bounds_the_cpu() -> None:
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_a_container_does(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(auto_fit, "CGROUP", tmp_path)
    without = free_memory(CPU)
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB - 2**20}\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 4096\n")
    assert free_memory(CPU) == 2**20 + 4096 < without
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > GIB


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="Linux alone limits it")
def test_the_limit_of_the_address_space_does() -> None:
    program = """
import resource, torch
from diffusers_fdu.training.auto_fit import free_memory
import psutil
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))
print(free_memory(torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 2**27 < int(done.stdout) <= 2**28, done.stderr


def test_a_share_of_a_card_does(monkeypatch) -> None:
    """Of 80 GB half may be used; 8 are allocated, 2 more cached, and others have taken 50."""
    found = {
        "mem_get_info": (20 * GIB, 80 * GIB),
        "memory_allocated": 8 * GIB,
        "memory_reserved": 10 * GIB,
        "get_per_process_memory_fraction": 0.5,
    }
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert free_memory(CUDA) == 22 * GIB
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 0.2)
    assert free_memory(CUDA) == 8 * GIB
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 0.05)
    assert free_memory(CUDA) == 0


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="Linux alone limits it")
@pytest.mark.parametrize("at_once", [False, True])
def test_an_address_space_that_does_not_hold_all_rows(at_once) -> None:
    """A tiny Stable Diffusion with pictures of 512 x 512, in a process with little memory.

    It chooses smaller micro-batches by itself; asked for all rows at once, it finds that they do
    not fit.
    """
    module = "examples.benchmarks.address_space"
    command = [sys.executable, "-m", module, "--tiny", "--gib", "2.9"]
    done = subprocess.run(
        command + ["--at-once"] * at_once,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["micro_batch_size"] < 16
    assert ("out of memory: going on" in done.stderr) == at_once
