"""Results as lines of JSON: one for each measurement, written as soon as it is known.

A line says where it was measured (device, driver, versions), when, by which benchmark, how long it
took and how much memory at most; the benchmark's own fields follow. What was cut off leaves the
lines that were written before. Nothing but the standard library is imported, so that a program
that has yet to install PyTorch can write lines, too.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "diffusers", "transformers", "peft", "bitsandbytes")
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
LONGEST = 400  # characters of an error
IDENTITY = (
    *("benchmark", "device", "model", "settings", "phase", "batch", "variant", "method"),
    *("size", "dtype", "f", "mask", "kernel", "check"),
)
"""Fields that say what was measured; a later line with the same takes an earlier one's place."""
Row = dict[str, Any]


class Skipped(Exception):
    """Raised where something cannot be measured here; its text says why."""


@lru_cache
def machine(device: str) -> Row:
    """What figures depend on, besides the program.

    Args:
        device: "cpu" or "cuda".
    """
    name, driver = f"{os.cpu_count()} CPU cores ({platform.machine()})", None
    if device == "cuda":
        name, driver = _gpu()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": device, "name": name, "driver": driver, "versions": versions}


def _gpu() -> tuple[str, str | None]:
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
        name, driver = done.stdout.splitlines()[0].split(", ")
        return name, driver
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        torch = sys.modules.get("torch")
        return (torch.cuda.get_device_name() if torch else "a GPU"), None


class Results:
    """Writes lines.

    Args:
        path: file that lines are appended to; None: they are only kept.
        device: "cpu" or "cuda".
        **common: fields of every line.

    Attributes:
        rows: what was written by this object.
        failed: whether a measurement raised.
    """

    def __init__(self, path: Path | None, device: str, **common: Any) -> None:
        self.path, self.device, self.common = path, device, common
        self.rows: list[Row] = []
        self.failed = False
        self._since = time.monotonic()

    def add(self, benchmark: str, **row: Any) -> Row:
        """Write a line.

        Args:
            benchmark: whose table the line belongs to.
            **row: its fields. `seconds` is the time since the line before if it is not given,
                and `bytes` the peak of the device's memory.
        """
        now = time.monotonic()
        line = {**machine(self.device), "date": str(date.today()), **self.common}
        line |= {"benchmark": benchmark, "seconds": now - self._since, "bytes": _peak(self.device)}
        line |= row
        self._since = now
        self.rows.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print({"benchmark": benchmark, **row}, file=sys.stderr, flush=True)
        return line

    @contextmanager
    def attempt(self, benchmark: str, **row: Any) -> Iterator[None]:
        """Measure something: if it raises, a line says so, and what follows goes on."""
        try:
            yield
        except Skipped as reason:
            self.add(benchmark, **row, skipped=str(reason))
        except Exception as error:
            self.failed = True
            traceback.print_exc()
            # Frames would keep their tensors.
            traceback.clear_frames(error.__traceback__)
            text = str(error).strip() or "no message"
            self.add(benchmark, **row, error=f"{type(error).__name__}: {text}"[:LONGEST])


def _peak(device: str) -> int | None:
    """Bytes of the device's memory at most, where PyTorch is there to be asked."""
    if "torch" not in sys.modules:
        return None
    from .measuring import peak_bytes

    return peak_bytes(device)


def read(path: Path) -> list[Row]:
    """All lines of a file; a line that was cut off is left out."""
    rows = []
    for text in path.read_text().splitlines():
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return rows


def newest(rows: list[Row]) -> list[Row]:
    """The last line of each measurement, in the order of the first.

    A failure is forgotten once what failed was measured, of which it may not know all fields.
    """
    found: dict[str, Row] = {}
    for row in rows:
        found[json.dumps([row.get(name) for name in IDENTITY])] = row
    done = [(i, row) for i, row in enumerate(rows) if not _has_failed(row)]
    last = {id(row): i for i, row in enumerate(rows)}
    return [
        row
        for row in found.values()
        if not _has_failed(row)
        or not any(i > last[id(row)] and _covers(row, other) for i, other in done)
    ]


def _has_failed(row: Row) -> bool:
    return "error" in row or "skipped" in row


def _covers(failure: Row, row: Row) -> bool:
    """Whether a row has all that a failure says was tried."""
    return all(row.get(name) == failure[name] for name in IDENTITY if name in failure)
