"""Functions and commands in processes of their own: one, or two on gloo.

The processes are forked from one that has imported everything, since importing takes longer than
most of what they do. tests/training/test_launched_trainings.py uses a real launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 (sets the environment of Triton, which the processes inherit)

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["diffusers_fdu.evaluation.evaluate", "families", "together"])


def start(function: Callable[..., Any], *arguments: Any, log: Path, **env: str) -> BaseProcess:
    """Call a function in a new process, whose output goes to `log`, and to `log` with .err."""
    paths = [*map(str, (TESTS, *TESTS.parents[:2])), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # read when the server starts
    process = CONTEXT.Process(target=_call, args=(function, arguments, log, env))
    process.start()
    return process


def _call(function: Callable[..., Any], arguments: tuple, log: Path, env: dict[str, str]) -> None:
    with log.open("a") as output, log.with_suffix(".err").open("a") as errors:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    os.environ.update(env)
    function(*arguments)


def run(function: Callable[..., Any], *arguments: str, together: bool) -> str:
    """Call it in one process or in two; returns what was written to stderr."""
    count = 2 if together else 1
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        logs = [Path(folder) / str(rank) for rank in range(count)]
        processes = []
        for rank, log in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            env = {"ACCELERATE_USE_CPU": "true", **(shared | place if together else {})}
            processes.append(start(function, *arguments, log=log, **env))
        for process in processes:
            process.join(500)
        errors = "".join(log.with_suffix(".err").read_text() for log in logs)
        if any(process.exitcode for process in processes):
            raise RuntimeError(errors[-3000:])
        return errors


def command(*arguments: str) -> subprocess.CompletedProcess:
    """Call `diffusers-fdu` with these arguments in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = start(_command, arguments, log=log)
        process.join(500)
        errors = log.with_suffix(".err").read_text()
        return subprocess.CompletedProcess(arguments, process.exitcode, log.read_text(), errors)


def _command(arguments: tuple[str, ...]) -> None:
    from diffusers_fdu.cli import main

    sys.argv = ["diffusers-fdu", *arguments]
    main()
