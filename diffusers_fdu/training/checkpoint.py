"""Files that are whole or not there: a training's state, to go on from after a crash.

A file is what `torch.save` writes: a zip archive with a checksum (CRC-32) of each of its members.
"""

import re
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils.io import UNFINISHED, atomic_write, writable_folder

KEPT = 2  # checkpoints of a training: the last, and one should the last be damaged
NAME = "step-{:06d}.state"
RECORDED = "recorded.state"


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a training keeps its state, and what it goes on from.

    Args:
        dir: the folder, made if missing; by default the folder of `resume`.
        every: steps between two checkpoints, of which the last two stay.
        resume: file or folder to go on from; True for the last checkpoint, if there is one; False
            to begin anew, and delete an earlier training's files in the folder.

    Raises:
        ValueError: if `every` is no positive integer, or neither argument names a folder.

    Example:
        >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
        >>> _ = unlearner.unlearn("dog", "cat", checkpoint=CheckpointConfig("states", every=1))
        >>> sorted(path.name for path in CheckpointConfig("states").folder.iterdir())
        ['recorded.state', 'step-000001.state']
    """

    dir: str | Path | None = None
    every: int = 20
    resume: bool | str | Path = False

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {self.every!r}")
        if self.dir is None and isinstance(self.resume, bool):
            raise ValueError("CheckpointConfig needs dir, or resume with a file or a folder")

    @property
    def folder(self) -> Path:
        """Where checkpoints are kept."""
        if self.dir is not None:
            return Path(self.dir)
        path = Path(self.resume)  # type: ignore[arg-type]  # checked above
        return path if path.is_dir() else path.parent


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a file; after an OSError the older file is there."""
    with atomic_write(path) as file:
        torch.save(content, file)


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote; a ValueError if the file is damaged or missing.

    The checksums cover every byte of the tensors and of the pickle that holds the rest. They do
    not cover the padding between members, and of the archive's own headers the dates, flags and
    attributes; a change there alters nothing that is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {member} differs")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except Exception as error:  # zipfile and torch raise whatever the damaged bytes lead to
        raise ValueError(f"{str(path)!r} is damaged or no checkpoint") from error


def step_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    pattern = re.compile(r"step-\d{6,}\.state")
    return sorted(path for path in folder.glob("step-*.state") if pattern.fullmatch(path.name))


class Checkpoints:
    """A training's checkpoints in a folder; `state` is what to go on from, if anything.

    A ValueError refuses a folder that cannot be written, and a file to go on from that is missing,
    damaged, or of another training, with another fingerprint.
    """

    def __init__(
        self, config: CheckpointConfig, fingerprint: dict[str, Any], writes: bool = True
    ) -> None:
        self.folder, self.every = config.folder, config.every
        self.fingerprint, self.writes = fingerprint, writes
        if writes:
            writable_folder(self.folder)
        self._resumes = config.resume is not False
        path = self._file_to_resume(config.resume)
        self.state = None if path is None else self._read_own(path)

    def _file_to_resume(self, resume: bool | str | Path) -> Path | None:
        if isinstance(resume, bool):
            return max(step_files(self.folder), default=None) if resume else None
        path = Path(resume)
        if not path.is_dir():
            return path
        if not step_files(path):
            raise ValueError(f"no checkpoint in {str(path)!r}")
        return max(step_files(path))

    def recorded(self) -> dict[str, Any] | None:
        """The state of the buffer that this training had recorded; None if there is none."""
        path = self.folder / RECORDED
        if not self._resumes or not path.exists():
            return None
        try:
            return self._read_own(path)
        except ValueError as error:
            if self.state is not None:
                warnings.warn(f"{error}; recording anew", RuntimeWarning, stacklevel=3)
            return None

    def begin(self, recorded: dict[str, Any] | None) -> None:
        """Keep a newly recorded buffer; a new training deletes an earlier one's files."""
        if not self.writes:
            return
        if recorded is not None and not self._write(self.folder / RECORDED, recorded):
            self.writes = False  # what is there stays
            return
        stale = list(self.folder.glob(f"{UNFINISHED}*"))
        if self.state is None:
            stale += step_files(self.folder)
            if recorded is None and not self._resumes:
                stale.append(self.folder / RECORDED)
        for path in stale:
            path.unlink(missing_ok=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state before a step, if it is time; a full disk does not end the training."""
        if step % self.every or not self.writes:
            return
        if self._write(self.folder / NAME.format(step), state):
            for path in step_files(self.folder)[:-KEPT]:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, state: dict[str, Any]) -> bool:
        try:
            write(path, {"about": self.fingerprint, "state": state})
        except OSError as error:
            message = f"no checkpoint {str(path)!r}: {error.strerror or error}; training goes on"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            return False
        return True

    def _read_own(self, path: Path) -> dict[str, Any]:
        try:
            content = read(path)
        except ValueError as error:
            advice = "no other is whole: start anew"
            for other in step_files(path.parent):
                with suppress(ValueError):
                    read(other)
                    advice = f"go on from {str(other)!r}"
            raise ValueError(f"{error}; {advice}") from error
        for name, value in self.fingerprint.items():
            if (other := content["about"].get(name)) != value:
                raise ValueError(
                    f"{str(path)!r} is of a training with {name}={other!r}, this one "
                    f"has {value!r}: use another folder for checkpoints, or do not resume"
                )
        return content["state"]
