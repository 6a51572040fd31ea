"""Imports what the parts need as it is imported, which the server does before it forks them."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext

from .answers import answered
from .server import VARIABLE, Job


def load(job: Job) -> None:
    """Import everything.

    Raises:
        Exception: if a library cannot be imported.
        RuntimeError: if an import has initialised CUDA, which no forked process could use then.
    """
    signal.setitimer(signal.ITIMER_REAL, job.limit)  # ends this process, wherever it hangs
    with answered() if job.device == "cuda" else nullcontext():
        for module in job.libraries:
            _import(module)
        for module in job.others:
            try:
                _import(module)
            except Exception:  # which fails the part that needs it, and no other
                traceback.print_exc()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise RuntimeError("CUDA was initialised by an import")
    signal.setitimer(signal.ITIMER_REAL, 0)


def _import(module: str) -> None:
    print(f"importing {module}", flush=True)
    importlib.import_module(module)


def _write_to(log: str) -> None:
    """Add the output of this process to a file."""
    with open(log, "ab") as output:
        for standard in (1, 2):
            os.dup2(output.fileno(), standard)


if VARIABLE in os.environ:  # not where this is imported by chance
    job = Job(*json.loads(os.environ.pop(VARIABLE)))
    _write_to(job.log)
    try:
        load(job)
    except Exception:  # of which the server would go on after some
        traceback.print_exc()
        os._exit(1)
