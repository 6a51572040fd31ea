"""Seconds and bytes of a piece of work, on a GPU or on the CPU."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .lines import Results, Skipped

GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Forget the peak of memory so far, and give back what is not in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.init()  # there are no peaks before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            CLEAR.write_text("5")  # see proc(5): resets the peak of the resident memory


def peak_bytes(device: str) -> int:
    """What PyTorch had allocated at most, on the CPU the process's resident memory at most."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_bytes(device: str) -> int:
    """Memory of the device that is free, with what PyTorch has reserved and does not use."""
    if device == "cuda":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def capped(device: str, gib: float) -> Iterator[None]:
    """As if the GPU had no more memory than this.

    Raises:
        Skipped: if it has less; on the CPU.
    """
    if device != "cuda":
        raise Skipped("only a GPU's memory can be capped")
    total = torch.cuda.get_device_properties(0).total_memory
    if gib * GIB > total:
        raise Skipped(f"the GPU has {total / GIB:.0f} GiB")
    reset_peak(device)
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Phases:
    """Parts of a piece of work that follow one another, a line for each.

    Args:
        results: where the lines go.
        benchmark: see `Results.add`.
        estimates: an object with bytes by phase; a phase that it does not have gets none.
        **row: fields of every line.
    """

    def __init__(
        self, results: Results, benchmark: str, estimates: Any = None, **row: Any
    ) -> None:
        self.results, self.benchmark, self.row = results, benchmark, row
        self.estimates = estimates
        self.name: str | None = None
        self.started = 0.0

    def begin(self, name: str) -> None:
        """End the phase that is running, and begin one."""
        self.end()
        reset_peak(self.results.device)
        self.name, self.started = name, time.monotonic()

    def end(self) -> None:
        """End the phase that is running, if any is, and write its line."""
        if self.name is None:
            return
        device = self.results.device
        wait(device)
        row = {**self.row, "phase": self.name, "seconds": time.monotonic() - self.started}
        row["bytes"] = peak_bytes(device)
        if device == "cuda":
            row["reserved_bytes"] = torch.cuda.max_memory_reserved()
        if (estimate := getattr(self.estimates, self.name, None)) is not None:
            row["estimate_bytes"] = estimate
        self.name = None
        self.results.add(self.benchmark, **row)
