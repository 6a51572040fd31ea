"""Files written whole or not at all, values as JSON types, and JSON that others wrote."""

import json
import numbers
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
UNFINISHED = ".unfinished-"  # begins the names of files that are being written
MAX_JSON = 64 * 2**20  # bytes of a JSON file; a recipe has a few thousand


def writable_folder(directory: str | Path) -> Path:
    """The folder, made if missing; a ValueError if it cannot be made or written."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return folder


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once it is written, or never.

    It is written beside its place, flushed to the disk and moved there, so that a crash at any
    time leaves the older file.
    """
    temporary = path.with_name(f"{UNFINISHED}{os.getpid()}-{path.name}.tmp")
    try:
        # Opened by name and not by `tempfile`, which would make it unreadable for other users.
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def json_text(content: Any) -> str:
    """JSON as every file of this library has it."""
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json_text(content))


def read_json(path: Path, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object that anyone may have written; a ValueError says why that fails."""
    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"{str(path)!r} has more than {max_bytes} bytes")
        return parse_json_object(path.read_text(encoding="utf-8"), repr(str(path)))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def parse_json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; a ValueError calls the text by its name if it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no JSON object")
    return content


def as_json(value: Any) -> Any:
    """A value as JSON types; one that has no such type becomes text."""
    if value is None or isinstance(value, str | bool):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: as_json(asdict(value))}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # Where something is in memory says nothing about it.
    return ADDRESS.sub("", repr(value))
