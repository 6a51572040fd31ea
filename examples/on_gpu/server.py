"""The server: a process that imports once what the parts need, and that they are forked from.

It is that of `multiprocessing`, of which there is one in a process. It starts with the first fork,
and again with the next if it has ended. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import forked
from .processes import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = "examples.on_gpu.preloaded"
VARIABLE = "ON_GPU_SERVER"  # of the environment: the server cannot be told by other ways
ENDED = 255  # what `multiprocessing` says of a process whose server ended before it did


class Job(NamedTuple):
    """What the server is to do before the first fork.

    Args:
        libraries: what to import, or to end.
        others: what to import after that, as far as it can be.
        device: "cpu" or "cuda".
        log: file that its output is added to.
        limit: seconds after which it ends, if it has not imported everything.
    """

    libraries: Sequence[str]
    others: Sequence[str]
    device: str
    log: str
    limit: float


class Ended(Exception):
    """Raised where nothing could be forked, since the server ended before."""


def prepare(job: Job, environment: dict[str, str]) -> None:
    """Say what the server is to do, and in which environment, which becomes that of this process.

    Args:
        job: what to do.
        environment: variables, which all that is forked has, too.
    """
    os.environ.update(environment)
    os.environ[VARIABLE] = json.dumps(job)
    CONTEXT.set_forkserver_preload([PRELOADED])


class Fork:
    """A process that is forked from the server, which begins and imports if it has to.

    Args:
        command: arguments of Python.
        log: file that its output is added to.
        environment: not used; it has that of the server.

    Raises:
        Ended: if there is no server, and none could be begun.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self._process = CONTEXT.Process(target=forked.run, args=(tuple(command), log, ROOT))
        try:
            self._process.start()
        except (OSError, EOFError) as error:
            raise Ended(repr(error)) from error
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """See `processes.Process`; ENDED if the server ended before it did."""
        self._process.join(seconds)
        return self._process.exitcode
