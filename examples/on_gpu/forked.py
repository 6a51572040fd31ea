"""What a process does that was forked to run a command of Python.

Only the standard library is imported.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def run(command: Sequence[str], log: Path, folder: Path) -> None:
    """Run a command as a Python of its own would, but for what is imported already.

    Args:
        command: "-m" and a module, or "-c" and a program, and arguments.
        log: file that the output is added to, also that of libraries in C.
        folder: where to run.
    """
    os.setsid()
    _connect(log)
    os.chdir(folder)
    option, name, *rest = command
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})


def _connect(log: Path) -> None:
    """Read nothing, and write to a file, as does whatever is started from here."""
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for ours, standard in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(ours, standard)
    for ours in {nothing, output} - {0, 1, 2}:
        os.close(ours)
