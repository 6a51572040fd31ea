"""What processes that train together are given: called by other tests in those processes.

    main(OUT, "key=value", ..., "--", OUT, "key=value", ...)

writes the adapter's weights and what was recorded from the main process; with shard=true also what
was called while training.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import torch
from accelerate import cpu_offload
from conftest import build_tiny_pipe
from families import FAMILIES
from torch.distributed.tensor import DTensor

from diffusers_fdu import FDUnlearner, Variational
from diffusers_fdu.pipelines.offload import onloaded
from diffusers_fdu.training import trainer as training

CONCEPTS = (["dog", "tree"], ["cat", "house"])


def spy(seen: list) -> None:
    """Keep what sharding gives to the training."""
    whole = training.sharded

    @contextmanager
    def watched(*arguments):
        with whole(*arguments) as model:
            seen.append(model)
            yield model

    training.sharded = watched


def parts(model) -> dict[str, tuple[bool, int, int]]:
    """Of each weight: whether it is shared out, its elements here, and in all."""
    return {
        name: (
            isinstance(p, DTensor),
            (p.to_local() if isinstance(p, DTensor) else p).numel(),
            p.numel(),
        )
        for name, p in model.named_parameters()
    }


def main(*arguments: str) -> None:
    for is_break, group in groupby(arguments, "--".__eq__):
        if not is_break:
            train(*group)


def train(output: str, *pairs: str) -> None:
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in pairs)}
    if isinstance(options.get("estimator"), dict):
        options["estimator"] = Variational(**options["estimator"])
    family = FAMILIES.get(options.pop("family", None))
    pipe = family.build() if family else build_tiny_pipe()
    run = {**family.run, family.guided: 4.0} if family else {"guidance_scale": 4.0}
    hooked = options.pop("hooks", None)
    together = "WORLD_SIZE" in os.environ
    worker = FDUnlearner(
        pipe,
        {"num_inference_steps": 3, **run},
        progress=False,
        trajectories=12,
        retain=["red house", "blue apple"],
        steps=6,
        early_stop=0.0,
        learning_rate=1e-2,
        data_parallel=together,
        **options,
    )
    seen, found = [], {}
    spy(seen)
    before = {n: p.clone() for n, p in worker.model.named_parameters()}
    if hooked == "sequential":
        cpu_offload(worker.model, torch.device("cpu"))
    elif hooked == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    worker.unlearn(*CONCEPTS, f="hellinger", callback=lambda record: found.update(parts(seen[-1])))
    with onloaded(worker.model):
        after = {n.replace("base_layer.", ""): p for n, p in worker.model.named_parameters()}
        assert all(type(p) is torch.nn.Parameter for p in after.values())
        assert all(torch.equal(after[n], p) for n, p in before.items())
        weights = {n: p.detach().clone() for n, p in after.items() if "lora_" in n}
    if worker.processes.is_main:
        history = [vars(record) for record in worker.history]
        facts = {"weights": weights, "history": history, "buffer": worker.recipe["buffer"]}
        torch.save({**facts, "parts": found}, Path(output))
