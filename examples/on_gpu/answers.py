"""Answers what libraries ask about the GPU as they are imported, without initialising CUDA.

torchao asks whether Triton can use the GPU, and torchao and bitsandbytes for its compute
capability. PyTorch would initialise CUDA to answer, and what is forked later could not use it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any
from unittest import mock

LIMIT = 30  # seconds in which the GPU has to answer


@contextmanager
def answered() -> Iterator[None]:
    """Let PyTorch say what a process forked before has found, as if there were one GPU."""
    import torch
    import torch._dynamo.device_interface  # keeps these functions, so it gets the real ones

    found = SimpleNamespace(**asked())
    with mock.patch.multiple(
        torch.cuda,
        get_device_properties=lambda device=None: found,
        get_device_capability=lambda device=None: (found.major, found.minor),
        current_device=lambda: 0,
    ):
        yield


def asked() -> dict[str, Any]:
    """The properties of the GPU by name.

    Raises:
        RuntimeError: if they could not be had; the process that asked has logged why.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sending,))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError as error:
        raise RuntimeError("the GPU did not answer") from error
    finally:
        process.join()


def _tell(sending: Connection) -> None:
    """Send the properties, as far as they are plain values."""
    import torch

    signal.alarm(LIMIT)  # ends this process
    found = torch.cuda.get_device_properties(0)
    values = {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}
    plain = {name: v for name, v in values.items() if isinstance(v, int | float | str)}
    sending.send(plain)
