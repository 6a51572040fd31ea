"""Time the loss: the fused kernel against eager PyTorch and torch.compile.

    python -m examples.benchmarks.loss_kernel --output runs/loss_kernel.json

On a CUDA device: medians of forward and of forward + backward over buffers that together exceed
the L2 cache, kernel launches counted by the profiler, peak memory beyond the inputs, and the
floor: the bytes that must move at the bandwidth measured for a copy, plus three launches at the
time measured for an empty one. On the CPU only eager and torch.compile are timed, in smaller
sizes: Triton runs there in an interpreter.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from diffusers_fdu import DivergenceLoss

SIZES = ((4, 4, 64, 64), (8, 4, 128, 128), (2, 4096, 64), (16, 16, 128, 128))
SMALL = ((4, 4, 16, 16), (2, 64, 16))
JOBS = (("kl", False), ("hellinger", False), ("hellinger", True), ("js", False))
ROTATE_BYTES = 256 * 2**20  # five times the L2 cache of an H100
REPEATS = 200
Pair = tuple[Tensor, Tensor]


def clock(device: str, work: Callable[[int], Any], repeats: int) -> float:
    """Median microseconds of `work(i)`."""
    for i in range(20):
        work(i)
    times = []
    for i in range(repeats):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work(i)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        else:
            begun = time.perf_counter()
            work(i)
            times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times)


def launches(device: str, work: Callable[[int], Any]) -> int | None:
    """Kernels that one call starts on the device."""
    if device != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work(0)
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(events)


def floors() -> tuple[float, float]:
    """Bytes a microsecond of a large copy, and microseconds of an empty launch."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = clock("cuda", lambda i: target.copy_(source), 20)
    one = torch.zeros(1, device="cuda")
    return 2 * source.numel() * 4 / copied, clock("cuda", lambda i: one.add_(1), 200)


def buffers(size: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Pair]:
    """Pairs of predictions that together do not fit a cache."""
    torch.manual_seed(0)
    one = 2 * torch.Size(size).numel() * dtype.itemsize
    count = max(1, min(64, ROTATE_BYTES // one)) if device == "cuda" else 4
    make = [torch.randn(2, *size, device=device, dtype=dtype) for _ in range(count)]
    return [(pair[0].clone().requires_grad_(), pair[1].clone()) for pair in make]


def measure(
    kernel: str, f: str, masked: bool, pairs: list[Pair], device: str, repeats: int
) -> dict[str, Any]:
    """Times, launches and memory of one way to compute one loss."""
    loss = DivergenceLoss(f, kernel=kernel)  # type: ignore[arg-type]
    pred = pairs[0][0]
    shape = (pred.shape[0], 1, *pred.shape[2:]) if pred.dim() == 4 else (*pred.shape[:2], 1)
    mask = torch.ones(shape, device=device) if masked else None

    def forward(i: int) -> Tensor:
        student, teacher = pairs[i % len(pairs)]
        return loss(student, teacher, mask)

    def both(i: int) -> None:
        student = pairs[i % len(pairs)][0]
        student.grad = None
        forward(i).backward()

    row = {
        "forward_us": clock(device, forward, repeats),
        "both_us": clock(device, both, repeats),
        "launches": launches(device, both),
    }
    if device == "cuda":
        student = pairs[0][0]
        student.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both(0)
        # The gradient itself is the caller's.
        own = student.numel() * student.element_size()
        row["memory_kib"] = (torch.cuda.max_memory_allocated() - before - own) / 1024
    return row


def run(device: str, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Time every size, dtype and profile."""
    kernels = ("eager", "compile", "triton") if device == "cuda" else ("eager", "compile")
    sizes = SIZES if device == "cuda" else SMALL
    rate, launch = floors() if device == "cuda" else (0.0, 0.0)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            torch.compiler.reset()  # or later sizes would be compiled for any
            pairs = buffers(size, dtype, device)
            # Two reads forward, two reads and a write backward.
            moved = 5 * pairs[0][0].numel() * dtype.itemsize
            floor = moved / rate + 3 * launch if rate else None
            for f, masked in JOBS:
                for kernel in kernels:
                    row = measure(kernel, f, masked, pairs, device, repeats)
                    row |= {"size": size, "dtype": str(dtype).removeprefix("torch."), "f": f}
                    row |= {"mask": masked, "kernel": kernel, "floor_us": floor}
                    rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    columns = {
        "forward_us": "forward us",
        "both_us": "both us",
        "launches": "launches",
        "memory_kib": "KiB",
        "floor_us": "floor us",
    }
    lines = [f"| size | dtype | f | mask | kernel | {' | '.join(columns.values())} |"]
    lines.append("|---" * (5 + len(columns)) + "|")
    for row in rows:
        size = "x".join(map(str, row["size"]))
        cells = [size, row["dtype"], row["f"], "yes" if row["mask"] else "", row["kernel"]]
        cells += ["" if row.get(k) is None else f"{row[k]:.0f}" for k in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/loss_kernel.json"),
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = REPEATS,
) -> None:
    """Time every size, dtype and profile."""
    rows = run("cuda" if torch.cuda.is_available() else "cpu", repeats)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
