"""Files that are whole or not there: a training's state, to go on from after a crash.

A file is a mark, the SHA-256 of what follows, and what `torch.save` writes. It is written beside
its place, flushed to the disk and moved there, so that a crash at any time leaves the older file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from .recipe import writable_folder

MARK = b"FDUSTATE"
DIGEST = 32  # bytes
KEPT = 2  # checkpoints of a training: the last, and one should the last be damaged
NAME = "step-{:06d}.state"
RECORDED = "recorded.state"


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a file, whole or not at all.

    Raises:
        OSError: if it cannot be written; what was there is there.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    data = stream.getvalue()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MARK + hashlib.sha256(data).digest() + data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        ValueError: if the file is not whole, with the last that is.
    """
    raw = path.read_bytes()
    data = raw[len(MARK) + DIGEST :]
    if raw != MARK + hashlib.sha256(data).digest() + data:
        good = [str(other) for other in checkpoints(path.parent) if other < path and _whole(other)]
        advice = f"go on from {good[-1]!r}" if good else "there is no older one: start anew"
        raise ValueError(f"{str(path)!r} is damaged or no checkpoint: {advice}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _whole(path: Path) -> bool:
    try:
        read(path)
    except (OSError, ValueError):
        return False
    return True


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, the oldest first."""
    pattern = re.compile(r"step-\d{6,}\.state")
    return sorted(path for path in folder.glob("step-*.state") if pattern.fullmatch(path.name))


class Checkpoints:
    """A training's checkpoints in a folder.

    Args:
        folder: made if missing.
        every: steps between two.
        about: what the training depends on, as JSON types; another training's are refused.
        resume: True: go on from the last if there is one. A path: from that one.
        writes: whether this process writes.

    Raises:
        ValueError: if `every` is no positive integer, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int,
        about: dict[str, Any],
        resume: bool | str | Path = False,
        writes: bool = True,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"checkpoint_every must be an integer of at least 1, got {every!r}")
        self.folder, self.every, self.about, self.writes = Path(folder), every, about, writes
        self.resume = resume
        if writes:
            writable_folder(self.folder)

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None to start anew.

        Raises:
            ValueError: if the file is damaged, or of another training.
        """
        if self.resume is False:
            return None
        if self.resume is not True:
            return self._checked(Path(self.resume))
        found = checkpoints(self.folder)
        return self._checked(found[-1]) if found else None

    def recorded(self) -> dict[str, Any] | None:
        """What was recorded, if a training is to go on and it was kept."""
        path = self.folder / RECORDED
        return self._checked(path) if self.resume is not False and path.exists() else None

    def keep(self, recorded: dict[str, Any]) -> None:
        """Keep what was recorded; the checkpoints of an earlier training go."""
        if self.writes:
            for path in (*checkpoints(self.folder), self.folder / RECORDED):
                path.unlink(missing_ok=True)
        self._write(self.folder / RECORDED, recorded)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state before a step, if it is time.

        A full disk does not end the training: a RuntimeWarning says that this one is missing.
        """
        if step % self.every:
            return
        if self._write(self.folder / NAME.format(step), state):
            for path in checkpoints(self.folder)[:-KEPT]:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, state: dict[str, Any]) -> bool:
        if not self.writes:
            return False
        try:
            write(path, {"training": self.about, **state})
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(
                f"no checkpoint {str(path)!r}: {reason}; training goes on",
                RuntimeWarning,
                stacklevel=3,
            )
            return False
        return True

    def _checked(self, path: Path) -> dict[str, Any]:
        state = read(path)
        about = state.pop("training")
        for name, value in self.about.items():
            if about.get(name) != value:
                raise ValueError(
                    f"{str(path)!r} is of a training with {name}={about.get(name)!r}, this one "
                    f"has {value!r}: pass another checkpoint_dir, or do not resume"
                )
        return state
