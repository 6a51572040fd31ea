"""How much memory a device has left for this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that PyTorch could still allocate on a device.

    On the CPU that is bounded by the machine, by the container's limit (cgroup v2), and by the
    process's limit of its address space (`ulimit -v`); on CUDA by what other processes take and
    by `torch.cuda.set_per_process_memory_fraction`.
    """
    if device.type == "cpu":
        found = (psutil.virtual_memory().available, _container(), _address_space())
        return max(0, int(min(found)))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        cached = torch.cuda.memory_reserved(device) - allocated
        share = torch.cuda.get_per_process_memory_fraction(device)
        return max(0, min(free + cached, int(share * total) - allocated))
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return torch.accelerator.get_memory_info(device)[0]


def _container() -> float:
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max" is no limit
        return float("inf")
    stat = dict(line.split() for line in lines)
    return limit - used + int(stat.get("inactive_file", 0))  # files that were read can go


def _address_space() -> float:
    process: Any = psutil.Process()
    if not hasattr(process, "rlimit"):  # Linux alone has it
        return float("inf")
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    return float("inf") if limit < 0 else limit - process.memory_info().vms
