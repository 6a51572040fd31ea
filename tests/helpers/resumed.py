"""A training that test_checkpoint.py kills, and one that goes on.

    python tests/helpers/resumed.py FOLDER KILL_AT RESUME key=value ...

is killed in the callback of step KILL_AT, or saves the adapter to FOLDER/adapter if it is -1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from conftest import build_tiny_pipe

from diffusers_fdu import CheckpointConfig, FDUnlearner


def main(folder: str, kill_at: str, resume: str, *pairs: str) -> None:
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in pairs)}

    def callback(record) -> None:
        if record.step == int(kill_at):
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
        checkpoint=CheckpointConfig(Path(folder) / "checkpoints", 3, resume == "resume"),
    )
    worker.save(Path(folder) / "adapter")


if __name__ == "__main__":
    main(*sys.argv[1:])
