"""A training that test_checkpoint.py kills, and one that goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_pipe

from diffusers_fdu import CheckpointConfig, FDUnlearner


def main(folder: Path, kill_at: int | None, resume: bool, options: dict[str, Any]) -> None:
    """Is killed in the callback of step `kill_at`; saves the adapter to folder/adapter if None."""
    torch.set_num_threads(1)

    def callback(record) -> None:
        if record.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    worker = FDUnlearner(
        build_tiny_pipe(),
        {"num_inference_steps": 3, "guidance_scale": 4.0},
        progress=False,
        trajectories=6,
        steps=12,
        batch_size=4,
        early_stop=0.0,
        learning_rate=1e-2,
        **options,
    )
    worker.unlearn(
        "dog",
        "cat",
        callback=callback,
        checkpoint=CheckpointConfig(folder / "checkpoints", 3, resume),
    )
    worker.save(folder / "adapter")
