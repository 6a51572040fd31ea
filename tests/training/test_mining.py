from __future__ import annotations

import torch
from conftest import build_tiny_pipe
from tiny import RUNS, add_other_adapter, unlearner

from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.data.concepts import Pair
from diffusers_fdu.data.recording import record
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.pipelines.recorder import Recorder
from diffusers_fdu.training.mining import EVERY, KEPT, Miner

CANDIDATES = ["a tree", "a house", "red apple", "blue photo"]


def mined(pipe):
    buffer = record(
        Recorder(pipe, RUNS),
        [Pair("a dog", "a cat")],
        [],
        torch.float32,
        progress=False,
        candidates=CANDIDATES,
    )
    base = ask(pipe.unet, buffer, buffer.entries("retain"))
    torch.testing.assert_close(  # what was recorded is what the model says
        base, buffer.batch([("retain", i) for i in range(len(base))], base.device, base.dtype)[1]
    )
    config = adapters.lora_config(pipe.unet, 4, None, None)
    for parameter in adapters.attach(pipe.unet, "new", config, 0):
        parameter.data.normal_(std=0.3)
    return buffer, Miner(pipe.unet, "new", buffer, 0)


def test_mined_rows_hold_what_the_model_said_without_the_adapter(pipe) -> None:
    add_other_adapter(pipe)  # counts as the model
    buffer, refresh = mined(pipe)
    refresh(0)
    entries = buffer.entries("mined")
    assert len(entries) == KEPT
    rows = [("mined", i) for i in range(KEPT)]
    expected = buffer.batch(rows, torch.device("cpu"), torch.float32)[1]
    student = ask(pipe.unet, buffer, entries)
    pipe.set_adapters(["other"], [0.7])
    torch.testing.assert_close(ask(pipe.unet, buffer, entries), expected, atol=1e-5, rtol=1e-4)
    assert (student - expected).abs().max() > 1e-3


def test_mined_rows_are_the_most_changed(pipe) -> None:
    """Those kept differ by more, on average, than all combinations do."""
    buffer, refresh = mined(pipe)
    refresh(0)
    states = sorted({entry.state for entry in buffer.entries("retain")})
    texts = buffer.candidates
    kept = buffer.entries("mined")
    every = [kept[0]._replace(state=s, text=t) for s in states for t in texts]

    def change(entries):
        student = ask(pipe.unet, buffer, entries)
        with adapters.scaled(pipe.unet, "new", 0.0):
            teacher = ask(pipe.unet, buffer, entries)
        return (student - teacher).square().mean()

    assert change(kept) > 1.1 * change(every)


def test_it_looks_again_every_few_steps(pipe) -> None:
    buffer, refresh = mined(pipe)
    refresh(0)
    first = buffer.entries("mined")
    refresh(1)
    assert buffer.entries("mined") == first
    refresh(EVERY)
    assert buffer.entries("mined") != first and buffer.count("mined") == KEPT


def test_training_with_mined_rows_is_reproducible() -> None:
    losses = []
    for _ in range(2):
        worker = unlearner(build_tiny_pipe(), retain_from="mined", steps=EVERY + 2)
        worker.unlearn("dog", "cat")
        losses.append([record.retain for record in worker.history])
    assert losses[0] == losses[1]
    assert worker.recipe["config"]["retain_from"] == "mined"
