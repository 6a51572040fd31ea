from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_pipe
from tiny import unlearner

from diffusers_fdu import checkpoint
from diffusers_fdu.checkpoint import checkpoints, read, write

TESTS = Path(__file__).parent
KILLED = -9


def run(folder: Path, kill_at: int, resume: str, *options: str) -> int:
    command = [sys.executable, str(TESTS / "resumed.py"), str(folder), str(kill_at), resume]
    env = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True)
    assert done.returncode in (0, KILLED), done.stderr[-2000:]
    return done.returncode


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "pytorch_lora_weights.safetensors").read_bytes()


OPTIONS = {
    "plain": ((0, 4, 8), []),
    "mined, surgery": ((7,), ['retain_from="mined"', "surgery=true"]),
    "variational": ((5,), ['estimator="variational"']),
}


@pytest.mark.parametrize(("killed_at", "options"), OPTIONS.values(), ids=OPTIONS)
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, killed_at, options) -> None:
    """Killed with SIGKILL at each of these steps in turn, resumed each time."""
    assert run(tmp_path / "whole", -1, "begin", *options) == 0
    for step in killed_at:
        assert run(tmp_path / "killed", step, "resume", *options) == KILLED
    assert run(tmp_path / "killed", -1, "resume", *options) == 0
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")


def trained(folder, resume=False, every=3, **options):
    worker = unlearner(build_tiny_pipe(), **options)
    worker.unlearn(
        "dog",
        "cat",
        checkpoint_dir=folder,
        checkpoint_every=every,
        resume_from_checkpoint=resume,
    )
    return worker


def weights(worker):
    return [p for n, p in worker.model.named_parameters() if "lora_" in n]


def test_any_checkpoint_leads_to_the_same_end(tmp_path) -> None:
    worker = trained(tmp_path)
    found = checkpoints(tmp_path)
    assert [path.name for path in found] == ["step-000006.state", "step-000009.state"]
    for path in found:
        again = trained(tmp_path, resume=path)
        assert [r.loss for r in again.history] == [r.loss for r in worker.history]
        assert all(map(torch.equal, weights(again), weights(worker)))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_with_the_last_good_one(tmp_path, damage) -> None:
    trained(tmp_path)
    good, bad = checkpoints(tmp_path)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    content = {"cut": content[:-9], "flipped": content, "empty": b""}[damage]
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged .*go on from '{good}'"):
        trained(tmp_path, resume=True)
    assert len(trained(tmp_path, resume=good).history) == 12
    good.unlink()
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="there is no older one"):
        trained(tmp_path, resume=True)


def test_another_training_is_refused(tmp_path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match="of a training with config="):
        trained(tmp_path, resume=True, rank=3)
    worker = unlearner(build_tiny_pipe())
    with pytest.raises(ValueError, match="of a training with concepts="):
        worker.unlearn("tree", "cat", checkpoint_dir=tmp_path, resume_from_checkpoint=True)
    worker.unlearn("tree", "cat", checkpoint_dir=tmp_path, checkpoint_every=5)  # begins anew
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-000005.state",
        "step-000010.state",
    ]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    """And the training goes on."""
    trained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "step-000009.state"
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, {"x": torch.ones(3)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    resume = tmp_path / "step-000006.state"
    with pytest.warns(RuntimeWarning, match="No space left on device; training goes on"):
        worker = trained(tmp_path, resume=resume)
    assert len(worker.history) == 12
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_is_whole_or_not_there(tmp_path) -> None:
    path = tmp_path / "step-000001.state"
    content = {"a": [torch.arange(3), "x"], "b": {"c": 1.5}}
    write(path, content)
    found = read(path)
    assert torch.equal(found["a"][0], torch.arange(3)) and found["b"] == {"c": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nonsense_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be an integer"):
        trained(tmp_path, every=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to"):
        trained(tmp_path / "file" / "folder")
