"""Time the loss: the fused kernel against eager PyTorch and torch.compile.

    python -m examples.benchmarks.loss_kernel --output runs/loss_kernel.jsonl

On a CUDA device: medians of forward and of forward + backward over buffers that together exceed
the L2 cache, as a training calls them; forward + backward replayed from a CUDA graph, where the
host launches nothing; kernel launches counted by the profiler, peak memory beyond the inputs, and
the floor: the bytes that must move at the bandwidth measured for a copy, plus three launches at
the time measured for an empty one. On the CPU only eager and torch.compile are timed, in smaller
sizes: Triton runs there in an interpreter.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from diffusers_fdu import DivergenceLoss
from diffusers_fdu.divergences import loss as loss_module

from .lines import Results
from .tables import Column, markdown

SIZES = (  # predictions of Stable Diffusion 1, FLUX and SDXL
    ((16, 4, 64, 64), torch.bfloat16),
    ((16, 4096, 64), torch.bfloat16),
    ((16, 4, 128, 128), torch.float32),
)
SMALL = tuple(
    (size, dtype)
    for size in ((4, 4, 16, 16), (2, 64, 16))
    for dtype in (torch.float32, torch.bfloat16)
)
JOBS = (("kl", False), ("hellinger", False), ("js", False), ("hellinger", True))
FALLBACK = ".*loss kernel cannot run"
GRAPHED = 20  # calls in a graph
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


def replayed(work: Callable[[int], Any], repeats: int) -> float:
    """Microseconds of `work(i)` in a CUDA graph of `GRAPHED` calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants a stream that is warm
        for i in range(3):
            work(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(GRAPHED):
            work(i)
    return clock("cuda", lambda i: graph.replay(), repeats) / GRAPHED


def floors(count: int) -> tuple[float, float]:
    """Bytes a microsecond of a large copy, and microseconds of an empty launch."""
    source = torch.empty(count, device="cuda")
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
) -> Iterator[dict[str, Any]]:
    """Times, launches and memory of one way to compute one loss; then the same with a graph's.

    Raises:
        RuntimeWarning: where the kernel would fall back to another.
    """
    loss_module._broken.clear()  # or what failed once would be timed in eager
    loss = DivergenceLoss(f, kernel=kernel)  # type: ignore[arg-type]
    pred = pairs[0][0]
    shape = (pred.shape[0], 1, *pred.shape[2:]) if pred.dim() == 4 else (*pred.shape[:2], 1)
    mask = torch.ones(shape, device=device) if masked else None

    def forward(i: int) -> Tensor:
        student, teacher = pairs[i % len(pairs)]
        return loss(student, teacher, mask)

    def both(i: int) -> Tensor:
        return torch.autograd.grad(forward(i), pairs[i % len(pairs)][0])[0]

    row = {
        "forward_us": clock(device, forward, repeats),
        "both_us": clock(device, both, repeats),
        "launches": launches(device, both),
    }
    if device == "cuda":
        student = pairs[0][0]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both(0)
        # The gradient itself is the caller's.
        own = student.numel() * student.element_size()
        row["memory_kib"] = (torch.cuda.max_memory_allocated() - before - own) / 1024
    yield row
    if device == "cuda":
        yield {**row, "graph_us": replayed(both, max(1, repeats // 10))}


def run(results: Results, tiny: bool = False, repeats: int = REPEATS) -> None:
    """Time every size and profile.

    Args:
        results: where the lines go.
        tiny: in the CPU's sizes, a few calls of each.
        repeats: timed calls of each.
    """
    repeats = 2 if tiny else repeats
    device = results.device
    kernels = ("eager", "compile", "triton") if device == "cuda" else ("eager", "compile")
    sizes = SIZES if device == "cuda" and not tiny else SMALL
    rate, launch = 0.0, 0.0
    if device == "cuda":
        rate, launch = floors(2**20 if tiny else 2**28)
        results.add("floors", copy_bytes_s=rate * 1e6, launch_us=launch)
    for size, dtype in sizes:
        torch.compiler.reset()  # or later sizes would be compiled for any
        pairs = buffers(size, dtype, device)
        # Two reads forward, two reads and a write backward.
        moved = 5 * pairs[0][0].numel() * dtype.itemsize
        floor = moved / rate + 3 * launch if rate else None
        for f, masked in JOBS:
            for kernel in kernels:
                row = {"size": size, "dtype": str(dtype).removeprefix("torch."), "f": f}
                row |= {"mask": masked, "kernel": kernel}
                with results.attempt("loss_kernel", **row), warnings.catch_warnings():
                    warnings.filterwarnings("error", FALLBACK, RuntimeWarning)
                    # Written twice on a GPU, so that a graph that fails takes no more with it.
                    for found in measure(kernel, f, masked, pairs, device, repeats):
                        results.add("loss_kernel", **row, **found, floor_us=floor)


COLUMNS = (
    Column("size", "size"),
    Column("dtype", "dtype"),
    Column("f", "f"),
    Column("mask", "mask"),
    Column("kernel", "kernel"),
    Column("forward_us", "forward us", ".0f"),
    Column("both_us", "both us", ".0f"),
    Column("graph_us", "both in a graph us", ".1f"),
    Column("launches", "launches"),
    Column("memory_kib", "KiB", ".0f"),
    Column("floor_us", "floor us", ".1f"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    return markdown(rows, COLUMNS, labels=5)


def main(
    output: Annotated[Path, typer.Option(help="File of lines of JSON, added to.")] = Path(
        "runs/loss_kernel.jsonl"
    ),
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = REPEATS,
) -> None:
    """Time every size, dtype and profile."""
    results = Results(output, "cuda" if torch.cuda.is_available() else "cpu")
    run(results, repeats=repeats)
    print(table([row for row in results.rows if row["benchmark"] == "loss_kernel"]))


if __name__ == "__main__":
    typer.run(main)
