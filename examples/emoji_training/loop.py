"""A training loop that can be stopped at any step and goes on from where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

CHECKPOINT_SECONDS = 120


class OutOfTime(Exception):
    """The time given has passed; the checkpoint holds the state, and a rerun goes on from it."""


def cosine(step: int, steps: int, warmup: int = 200) -> float:
    """Factor on the learning rate: linear warm-up, then cosine to 1 %."""
    decay = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return min(1.0, (step + 1) / warmup) * max(decay, 0.01)


def train(
    name: str,
    state: dict[str, Any],
    steps: int,
    step: Callable[[int], dict[str, float]],
    work_dir: Path,
    deadline: float,
) -> None:
    """Call `step(i)` for i < steps, saving `state` (objects with a state_dict) now and then.

    Args:
        name: names the checkpoint `<work_dir>/<name>.pt` and the progress bar.
        state: what a checkpoint holds: modules, optimizers, anything with a `state_dict`.
        steps: number of steps in all, those of earlier calls included.
        step: does one step and returns figures for the progress bar.
        work_dir: folder of the checkpoint.
        deadline: `time.monotonic()` value after which the loop saves and raises.

    Raises:
        OutOfTime: if the deadline passed first.
    """
    path = work_dir / f"{name}.pt"
    start = 0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        start = saved.pop("step")
        for key, value in saved.items():
            state[key].load_state_dict(value)

    def save(done: int) -> None:
        content = {key: value.state_dict() for key, value in state.items()}
        torch.save({"step": done, **content}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    saved_at = time.monotonic()
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, mininterval=10)
    for i in bar:
        figures = step(i)
        if i % 50 == 0:
            bar.set_postfix({key: f"{value:.4f}" for key, value in figures.items()})
        now = time.monotonic()
        if now > deadline:
            save(i + 1)
            raise OutOfTime(name)
        if now - saved_at > CHECKPOINT_SECONDS:
            save(i + 1)
            saved_at = now
    if start < steps:
        save(steps)
