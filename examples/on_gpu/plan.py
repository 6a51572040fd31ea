"""The parts, most important first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """One part, which runs as a process of its own.

    Args:
        number: what it is chosen by.
        name: what it is called in results and tables.
        limit: seconds after which it is stopped.
        expected: seconds that it is likely to take; with less left it is not begun.
        command: arguments of Python: "-m" and a module, or "-c" and a program, and what they take.
    """

    number: int
    name: str
    limit: float
    expected: float
    command: tuple[str, ...]


def _calls(target: str) -> tuple[str, ...]:
    """Arguments that run a function of results and of whether to be tiny."""
    return ("-m", "examples.on_gpu.part", target)


PARTS = (
    Part(0, "machine", 60, 10, _calls("examples.on_gpu.machine:run")),
    Part(1, "works", 90, 35, _calls("examples.on_gpu.works:run")),
    Part(2, "sd1", 120, 75, _calls("examples.benchmarks.whole:run_sd1")),
    Part(3, "steps", 120, 60, _calls("examples.on_gpu.steps:run_sd1")),
    Part(4, "profile", 60, 30, _calls("examples.on_gpu.profiling:run")),
    Part(5, "sdxl", 120, 60, _calls("examples.benchmarks.whole:run_sdxl")),
    Part(6, "flux", 90, 50, _calls("examples.on_gpu.steps:run_flux")),
    Part(7, "loss", 90, 45, _calls("examples.benchmarks.loss_kernel:run")),
    Part(8, "tests", 130, 60, _calls("examples.on_gpu.gpu_tests:run")),  # disturbs timing
    Part(9, "erase", 60, 40, _calls("examples.benchmarks.time_to_erase:run")),
)
LIBRARIES = ("torch", "transformers", "diffusers", "peft", "accelerate", "diffusers_fdu")


def modules(parts: Sequence[Part]) -> list[str]:
    """The modules of these parts' functions."""
    return list(dict.fromkeys(part.command[-1].partition(":")[0] for part in parts))


def chosen(numbers: str) -> list[Part]:
    """The parts with these numbers, separated by commas or spaces; all for none.

    Raises:
        ValueError: for a number that no part has.
    """
    wanted = numbers.replace(",", " ").split()
    known = {str(part.number): part for part in PARTS}
    for number in wanted:
        if number not in known:
            raise ValueError(f"there is no part {number!r}: choose from {', '.join(known)}")
    return [part for part in PARTS if not wanted or str(part.number) in wanted]
