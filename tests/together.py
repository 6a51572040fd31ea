"""What processes that train together are given: run by test_processes.py under a launcher.

    python tests/together.py OUT key=value ...

writes the adapter's weights and what was recorded from the main process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from conftest import build_tiny_pipe

from diffusers_fdu import FDUnlearner, Variational

CONCEPTS = (["dog", "tree"], ["cat", "house"])


def main(output: str, *pairs: str) -> None:
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in pairs)}
    if isinstance(options.get("estimator"), dict):
        options["estimator"] = Variational(**options["estimator"])
    pipe = build_tiny_pipe()
    together = "WORLD_SIZE" in os.environ
    worker = FDUnlearner(
        pipe,
        {"num_inference_steps": 3, "guidance_scale": 4.0},
        progress=False,
        trajectories=12,
        retain=["red house", "blue apple"] if options.pop("named", True) else None,
        steps=6,
        early_stop=0.0,
        learning_rate=1e-2,
        data_parallel=together,
        **options,
    )
    worker.unlearn(*CONCEPTS, f="hellinger")
    if worker.processes.is_main:
        weights = {n: p for n, p in worker.model.named_parameters() if "lora_" in n}
        history = [vars(record) for record in worker.history]
        facts = {"weights": weights, "history": history, "buffer": worker.recipe["buffer"]}
        torch.save(facts, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
