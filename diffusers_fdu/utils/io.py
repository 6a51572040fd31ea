"""Folders that can be written, and values as JSON types."""

from __future__ import annotations

import numbers
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def writable_folder(directory: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        ValueError: if it cannot be made or written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return folder


def as_json(value: Any) -> Any:
    """A value as JSON types; what has none is written as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: as_json(asdict(value))}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # Where something is in memory says nothing about it.
    return value if isinstance(value, str | bool | None) else ADDRESS.sub("", repr(value))
