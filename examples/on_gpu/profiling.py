"""Where the time of a step of Stable Diffusion 1 goes, and how long the GPU is busy in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from examples.benchmarks.denoisers import SIZES
from examples.benchmarks.lines import Results
from examples.benchmarks.measuring import reset_peak, wait
from examples.benchmarks.step import Ours, channels_last

WARMUP, STEPS, TOP = 2, 3, 25
LONGEST = 60  # characters of a name


def run(results: Results, tiny: bool = False) -> None:
    """Profile two batches in both memory formats, the more telling ones first."""
    model = "tiny" if tiny else "sd1"
    ours = Ours.build(SIZES[model], results.device)
    for batch in (16, 2):
        for last in (False, True):
            variant = "channels_last" if last else "contiguous"
            row = {"model": model, "batch": batch, "variant": variant}
            reset_peak(results.device)
            with results.attempt("profile", **row), channels_last(ours.model, last):
                results.add("profile", **row, **profiled(ours, batch))


def profiled(ours: Ours, batch: int) -> dict[str, Any]:
    """Seconds of a step without the profiler, and what it says of the steps after these."""
    activities = [ProfilerActivity.CPU]
    if ours.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler, marks = profile(activities=activities), [time.perf_counter()]

    def look() -> None:
        wait(ours.device)
        marks.append(time.perf_counter())
        if len(marks) == WARMUP + STEPS + 1:
            profiler.start()
        if len(marks) == WARMUP + 2 * STEPS + 1:
            profiler.stop()

    ours.train(ours.settings(batch, WARMUP + 2 * STEPS), look)
    times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    seconds = statistics.median(times[WARMUP : WARMUP + STEPS])
    averages = profiler.key_averages()
    called = [one for one in averages if one.device_type == DeviceType.CPU]
    found = {"seconds": seconds, "cpu_top": top(called, "self_cpu_time_total")}
    if ours.device == "cuda":
        found["gpu_top"] = top(called, "self_device_time_total")
        launched = [one for one in averages if is_kernel(one)]
        found["kernels_top"] = top(launched, "self_device_time_total")
        kernels = [event for event in profiler.events() if is_kernel(event)]
        spans = [(e.time_range.start, e.time_range.end) for e in kernels]
        # The profiler slows the host alone, so a step is as long as without it.
        found["busy"] = covered(spans) / 1e6 / STEPS / seconds
        found["launches"] = len(kernels) // STEPS
    print(averages.table(sort_by="self_cpu_time_total", row_limit=TOP, max_name_column_width=60))
    return found


def is_kernel(event: Any) -> bool:
    """Whether something ran on the GPU, rather than the operation that launched it."""
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def top(averages: Any, key: str) -> list[tuple[str, float, int]]:
    """The operations that take longest: name, microseconds and calls in a step."""
    best = sorted(averages, key=lambda one: getattr(one, key), reverse=True)[:TOP]
    return [(e.key[:LONGEST], getattr(e, key) / STEPS, e.count // STEPS) for e in best]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much of the time line any of the spans covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
