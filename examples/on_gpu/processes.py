"""Processes that run a command of Python, and how they are ended with all that they started.

Only the standard library is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[2]
GRACE = 5.0  # seconds between asking a process to end and ending it


class Process(Protocol):
    """One that leads a group of processes, or is about to."""

    pid: int

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, negative for a signal; None if it goes on after so many seconds."""


class Subprocess:
    """A process that imports for itself what it needs.

    Args:
        command: arguments of Python.
        log: file that its output is added to.
        environment: its variables.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """See `Process`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def ended(process: Process, limit: float) -> int | None:
    """The exit code of a process; None if it was stopped, with all that it started."""
    code = None
    try:
        code = process.wait(limit)
        if code is None:
            _signal(process.pid, signal.SIGTERM)
            process.wait(GRACE)
    finally:
        _signal(process.pid, signal.SIGKILL)  # and what it left behind
        process.wait()
    return code


def _signal(pid: int, number: int) -> None:
    """Send a signal to a group of processes, or to the process that has yet to make it."""
    for send in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            send(pid, number)
            return
