"""A whole unlearning of a Stable Diffusion 1 with random weights, on the CPU, in little memory.

    python -m examples.benchmarks.address_space --gib 12
    python -m examples.benchmarks.address_space --gib 12 --at-once

The process limits its own address space (as `ulimit -v` does), builds the pipeline in float32 and
unlearns with the defaults, but for what only takes time: one recorded picture of the target, few
steps. Prints what was chosen, the estimate, and the largest resident set. With `--at-once` all
rows of a step are to go through the denoiser together, which runs out of memory and is mended.
"""

from __future__ import annotations

import json
import resource
import time
from typing import Annotated, Any

import torch
import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.training.memory import GIB

from .pipelines import sd1_pipeline
from .step import RATE

FEW: dict[str, Any] = {"trajectories": 1, "steps": 1, "learning_rate": RATE, "early_stop": 0.0}

AT_ONCE: dict[str, Any] = {"micro_batch_size": 16, "gradient_checkpointing": False}


def limit_address_space(size: int) -> None:
    """Let this process take no more than so many bytes from now on."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size, most))


def run(gib: float, tiny: bool, at_once: bool) -> dict[str, Any]:
    """Unlearn within the limit; what it took.

    Args:
        gib: limit of the address space, GiB.
        tiny: the smallest sizes, with pictures of 512 x 512.
        at_once: ask for all rows of a step at once.
    """
    limit_address_space(int(gib * GIB))
    pipe = sd1_pipeline("cpu", torch.float32, tiny=tiny)
    kwargs: dict[str, Any] = {"num_inference_steps": 2}
    if tiny:
        kwargs |= {"height": 512, "width": 512}
    worker = FDUnlearner(pipe, kwargs, **FEW, **(AT_ONCE if at_once else {}))
    started = time.monotonic()
    estimate = worker.estimate()
    traced = time.monotonic() - started
    largest = FDUnlearner(pipe, kwargs, **FEW, **AT_ONCE).estimate()
    assert estimate is not None and largest is not None
    worker.unlearn("dog", "cat")
    chosen = worker.recipe["performance"]
    return {
        "limit_gib": gib,
        "estimate_gib": round(estimate.peak / GIB, 2),
        "estimate_of_all_rows_at_once_gib": round(largest.peak / GIB, 2),
        "resident_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "micro_batch_size": chosen["micro_batch_size"],
        "gradient_checkpointing": chosen["gradient_checkpointing"],
        "record_batch": chosen["record_batch"],
        "trace_s": round(traced, 1),
        **worker.recipe["seconds"],
    }


def main(
    gib: Annotated[float, typer.Option(help="Limit of the address space, GiB.")] = 12.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Smallest sizes.")] = False,
    at_once: Annotated[bool, typer.Option("--at-once", help="All rows at once.")] = False,
) -> None:
    """Unlearn within the limit and print what it took, as JSON."""
    print(json.dumps(run(gib, tiny, at_once)))


if __name__ == "__main__":
    typer.run(main)
