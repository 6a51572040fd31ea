"""Adapters of supported pipelines, trained by one process or by several together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from families import FAMILIES
from launched import run

from diffusers_fdu import FDUnlearner

ROWS = 4  # of each role in a step, over all processes
Weights = dict[str, torch.Tensor]


def trained(key: str, processes: int) -> Weights:
    """One family's adapter after a few steps."""
    family = FAMILIES[key]
    kwargs = {**family.run, "num_inference_steps": 2, family.guided: 4.0}
    worker = FDUnlearner(
        family.build(),
        kwargs,
        False,
        component="transformer_2" if key == "wan22" else None,
        trajectories=12,
        steps=3,
        batch_size=ROWS // processes,
        early_stop=0.0,
        retain=["a tree", "a red house"],
        data_parallel=processes > 1,
    )
    worker.unlearn("a snoopy", "a dog in a red house")
    return {n: p.detach() for n, p in worker.model.named_parameters() if "lora_" in n}


def errors(keys: Sequence[str]) -> dict[str, float]:
    """Largest difference of weights between one process and two with half the rows each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        run(main, str(path), *keys, together=True)
        both = torch.load(path)
    found = {}
    for key in keys:
        alone = trained(key, 1)
        assert alone.keys() == both[key].keys()
        found[key] = max((both[key][n] - p).abs().max().item() for n, p in alone.items())
    return found


def main(output: str, *keys: str) -> None:
    """Write each family's adapter, from the main process among several."""
    torch.set_num_threads(1)
    count = int(os.environ["WORLD_SIZE"])
    found = {key: trained(key, count) for key in keys}
    if os.environ["RANK"] == "0":
        torch.save(found, Path(output))
