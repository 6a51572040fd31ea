from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import resumed
import torch
from conftest import build_tiny_pipe
from launched import start
from tiny import unlearner

from diffusers_fdu import CheckpointConfig
from diffusers_fdu.training.checkpoint import read, step_files, write

KILLED = -9


def run(folder: Path, kill_at: int | None, resume: bool, options: dict) -> int | None:
    log = folder.with_suffix(".log")
    process = start(resumed.main, folder, kill_at, resume, options, log=log)
    process.join()
    assert process.exitcode in (0, KILLED), log.with_suffix(".err").read_text()[-2000:]
    return process.exitcode


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "pytorch_lora_weights.safetensors").read_bytes()


OPTIONS = {
    "plain": ((0, 4, 8), {}),
    "surgery": ((7,), {"surgery": True}),
    "variational": ((5,), {"estimator": "variational"}),
}


@pytest.mark.parametrize(("killed_at", "options"), OPTIONS.values(), ids=OPTIONS)
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, killed_at, options) -> None:
    """Killed with SIGKILL at each of these steps in turn, resumed each time."""
    assert run(tmp_path / "whole", None, False, options) == 0
    for step in killed_at:
        assert run(tmp_path / "killed", step, True, options) == KILLED
    assert run(tmp_path / "killed", None, True, options) == 0
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")


def trained(folder, resume=False, every=3, **options):
    worker = unlearner(build_tiny_pipe(), **options)
    worker.unlearn("dog", "cat", checkpoint=CheckpointConfig(folder, every, resume))
    return worker


def weights(worker):
    return [p for n, p in worker.model.named_parameters() if "lora_" in n]


def test_any_checkpoint_leads_to_the_same_end(tmp_path) -> None:
    worker = trained(tmp_path)
    found = step_files(tmp_path)
    assert [path.name for path in found] == ["step-000006.state", "step-000009.state"]
    for path in found:
        again = trained(tmp_path, resume=path)
        assert [r.loss for r in again.history] == [r.loss for r in worker.history]
        assert all(map(torch.equal, weights(again), weights(worker)))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_with_the_last_good_one(tmp_path, damage) -> None:
    trained(tmp_path)
    good, bad = step_files(tmp_path)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    content = {"cut": content[:-9], "flipped": content, "empty": b""}[damage]
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged .*; go on from '{good}'"):
        trained(tmp_path, resume=True)
    assert len(trained(tmp_path, resume=good).history) == 12
    good.unlink()
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="no other is whole"):
        trained(tmp_path, resume=True)


def test_another_training_is_refused(tmp_path) -> None:
    trained(tmp_path)
    with pytest.raises(ValueError, match="of a training with config="):
        trained(tmp_path, resume=True, rank=3)
    worker = unlearner(build_tiny_pipe())
    with pytest.raises(ValueError, match="of a training with concepts="):
        worker.unlearn("tree", "cat", checkpoint=CheckpointConfig(tmp_path, resume=True))
    worker.unlearn("tree", "cat", checkpoint=CheckpointConfig(tmp_path, 5))  # begins anew
    assert [path.name for path in step_files(tmp_path)] == [
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
    monkeypatch.setattr(os, "fsync", full)
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


def test_any_flipped_byte_is_found_or_changes_nothing(tmp_path) -> None:
    """Every byte in turn; of those that hold tensors and values each is found."""
    path = tmp_path / "step-000001.state"
    content = {"a": torch.arange(40, dtype=torch.float32), "b": {"c": [1.5, "x"]}}
    write(path, content)
    whole = path.read_bytes()
    start = whole.index(content["a"].numpy().tobytes())
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except ValueError:
            continue
        assert not start <= place < start + 160, place
        assert torch.equal(found["a"], content["a"]) and found["b"] == content["b"], place


def test_without_what_was_recorded_it_is_recorded_again(tmp_path) -> None:
    worker = trained(tmp_path)
    for damage in ("gone", "cut"):
        path = tmp_path / "recorded.state"
        content = path.read_bytes()
        path.unlink() if damage == "gone" else path.write_bytes(content[:-5])
        if damage == "gone":
            again = trained(tmp_path, resume=tmp_path / "step-000006.state")
        else:
            with pytest.warns(RuntimeWarning, match="damaged .*; recording anew"):
                again = trained(tmp_path, resume=tmp_path)
        assert all(map(torch.equal, weights(again), weights(worker)))
        assert path.read_bytes() == content


def test_a_new_training_takes_the_folder(tmp_path) -> None:
    """With a buffer too; its own checkpoints stay, not those of the one before."""
    trained(tmp_path)
    other = unlearner(build_tiny_pipe(), steps=5)
    buffer = other.record("dog", "cat")
    other.unlearn("dog", "cat", f="tv", buffer=buffer, checkpoint=CheckpointConfig(tmp_path, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003.state"]
    with pytest.raises(ValueError, match="of a training with f='tv'"):
        trained(tmp_path, resume=True)


def test_the_folder_can_be_told_from_the_checkpoint(tmp_path) -> None:
    worker = trained(tmp_path)
    again = trained(None, resume=tmp_path / "step-000009.state")
    assert all(map(torch.equal, weights(again), weights(worker)))
    for resume, message in (
        (tmp_path / "step-000001.state", "cannot read .*No such file"),
        (tmp_path.parent, "no checkpoint in"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(tmp_path, resume=resume)
    with pytest.raises(ValueError, match="needs dir"):
        trained(None, resume=True)


def test_what_a_training_depends_on_is_compared(tmp_path) -> None:
    trained(tmp_path, mixed_precision="bf16")
    with pytest.raises(ValueError, match="mixed_precision='bf16'"):
        trained(tmp_path, resume=True)
    pipe = build_tiny_pipe()
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    worker = unlearner(pipe, mixed_precision="bf16")
    with pytest.raises(ValueError, match="of a training with weights="):
        worker.unlearn("dog", "cat", checkpoint=CheckpointConfig(tmp_path, resume=True))


def test_functions_are_told_apart_by_what_they_do(tmp_path) -> None:
    def first(t):
        return t * t.log()

    def second(t):
        return (t - 1) ** 2

    first.__name__ = second.__name__ = "mine"
    unlearner(build_tiny_pipe()).unlearn(
        "dog", "cat", f=first, checkpoint=CheckpointConfig(tmp_path, 5)
    )
    again = unlearner(build_tiny_pipe())
    with pytest.raises(ValueError, match="of a training with profile="):
        again.unlearn("dog", "cat", f=second, checkpoint=CheckpointConfig(tmp_path, 5, True))
    again.unlearn("dog", "cat", f=first, checkpoint=CheckpointConfig(tmp_path, 5, True))


def test_where_an_object_is_in_memory_does_not_matter(tmp_path) -> None:
    """Such as that of a callback among the pipeline's arguments."""
    for resume in (False, True):

        def quiet(pipe, step, time, values):
            return values

        worker = unlearner(build_tiny_pipe())
        worker.pipeline_kwargs |= {"callback_on_step_end": quiet}
        worker.unlearn("dog", "cat", checkpoint=CheckpointConfig(tmp_path, resume=resume))


def test_what_a_killed_process_left_goes(tmp_path) -> None:
    (tmp_path / ".unfinished-x").write_bytes(b"half")
    trained(tmp_path)
    assert not list(tmp_path.glob(".unfinished-*"))


def test_nonsense_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="every must be an integer"):
        trained(tmp_path, every=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to"):
        trained(tmp_path / "file" / "folder")
