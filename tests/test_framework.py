"""Anchors, estimators, several concepts: every part of the framework through the front door."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from conftest import build_tiny_pipe, latents
from safetensors.torch import load_file
from tiny import FAST, RUNS, add_other_adapter, state, unlearner

from diffusers_fdu import Concept, FDUnlearner, NegativeGuidance, Variational
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.divergences.variational import VariationalLoss
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import cells, judge_cells
from diffusers_fdu.utils.io import as_json

OPTIONS = [
    {"surgery": True},
    {"surgery": True, "micro_batch_size": 2},
    {"estimator": "variational"},
    {"estimator": Variational(warmup_steps=2, critic_steps=2, gradient_penalty=0.0)},
    {"retain_weight": 0.0, "surgery": True},
]


def trained(pipe, **options):
    """An unlearner, and its weights on the CPU."""
    worker = unlearner(pipe, steps=30, init="lora", **options)
    worker.unlearn("dog", "cat", f="hellinger", adapter_name="new")
    layers = [p for n, p in pipe.unet.named_parameters() if ".new." in n]
    return worker, torch.cat([p.flatten().clone() for p in layers])


@pytest.fixture(scope="module")
def defaults() -> torch.Tensor:
    return trained(build_tiny_pipe())[1]


@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_every_option_changes_what_is_trained(pipe, tmp_path, options, defaults) -> None:
    before = state(pipe)
    worker, weights = trained(pipe, **options)
    first, last = (
        sum(record.distance for record in part)
        for part in (worker.history[:5], worker.history[-5:])
    )
    assert last < first or "estimator" in options  # a critic has no time to learn here
    # Accumulation of independent rows is another draw anyway.
    assert (weights - defaults).abs().max() > 1e-4
    folder = worker.save(tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    everything = {**recipe["config"], **recipe["performance"]}
    for name, value in options.items():
        if not isinstance(value, Variational):
            assert everything[name] == as_json(value)
        else:
            assert everything[name] == asdict(value)
    keys = load_file(folder / "pytorch_lora_weights.safetensors")
    assert all("attn2.to_" in key for key in keys)  # no critic in the file
    pipe.unload_lora_weights()
    after = state(pipe)
    assert {k: after[k] for k in ("grad", "training", "scheduler", "rng")} == {
        k: before[k] for k in ("grad", "training", "scheduler", "rng")
    }


def test_each_concept_has_its_own_sigma_and_they_share_one_adapter(pipe) -> None:
    worker = unlearner(pipe, steps=60)
    worker.unlearn(["dog", "red"], ["cat", NegativeGuidance()], f="kl")
    assert worker.adapter_name == "forget-dog-red"
    first, second = worker.recipe["sigma"]
    assert first > 0 and second > 0 and first != second
    assert worker.history[-1].divergence < 0.7 * worker.history[0].divergence
    assert [c["target"] for c in worker.recipe["concepts"]] == ["dog", "red"]


def test_the_name_of_many_targets_is_short(pipe) -> None:
    worker = unlearner(pipe, steps=1)
    worker.unlearn(["dog", "cat", "tree", "apple", "house"], adapter_name=None)
    assert worker.adapter_name == "forget-dog-cat-tree-2-more"


def test_surgery_changes_what_is_learned_and_accumulation_does_not() -> None:
    """Splitting a batch into micro-batches leaves the projection as it is."""

    def weights(**options):
        pipe = build_tiny_pipe()
        worker = FDUnlearner(
            pipe,
            {"num_inference_steps": 1, "guidance_scale": 1.0},
            progress=False,
            **{"steps": 6, "trajectories": 1, "early_stop": 0.0, "learning_rate": 1e-2},
            **{"init": "lora", "retain_weight": 0.5, **options},
        )
        # One row of each kind, so that every micro-batch is the same; and what is retained is
        # what is to be unlearned, so that the two gradients conflict.
        buffer = worker.record(Concept("dog", "cat", prompts=["a {}"]))
        (dog,) = buffer.entries("unlearn")
        answer = buffer.add_prediction(ask(pipe.unet, buffer, [dog])[0])
        buffer.clear("retain")
        buffer.add_row("retain", dog.state, dog.text, answer)
        worker.unlearn(Concept("dog", "cat", prompts=["a {}"]), f="kl", buffer=buffer)
        return {n: p.clone() for n, p in pipe.unet.named_parameters() if "lora_B" in n}

    whole = weights(batch_size=8, surgery=True)
    parts = weights(batch_size=8, micro_batch_size=2, surgery=True)
    without = weights(batch_size=8)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-2, atol=2e-5)
    assert any((whole[name] - without[name]).abs().max() > 1e-4 for name in whole)


def test_a_recorded_buffer_serves_many_trainings(pipe) -> None:
    worker = unlearner(pipe)
    before = state(pipe)
    buffer = worker.record("dog", "cat")
    assert state(pipe) == before
    files = []
    for name in ("one", "two"):
        worker.unlearn("dog", "cat", f="js", buffer=buffer, adapter_name=name)
        layers = [p for n, p in pipe.unet.named_parameters() if f".{name}." in n]
        files.append([p.clone() for p in layers])
        pipe.delete_adapters(name)
    assert all(torch.equal(a, b) for a, b in zip(*files, strict=True))
    fresh = unlearner(build_tiny_pipe())
    fresh.unlearn("dog", "cat", f="js", adapter_name="one")
    own = [p for n, p in fresh.model.named_parameters() if ".one." in n]
    assert all(torch.equal(a, b) for a, b in zip(files[0], own, strict=True))


def test_a_buffer_recorded_otherwise_is_refused(pipe) -> None:
    buffer = unlearner(pipe).record("dog", "cat")
    cases = {
        "concepts": ({}, ("apple", "tree")),
        "seed": ({"seed": 1}, ("dog", "cat")),
        "retains": ({"retain_weight": 0.0}, ("dog", "cat")),
        "retain": ({"retain": ["tree"]}, ("dog", "cat")),
        "trajectories": ({"trajectories": 5}, ("dog", "cat")),
    }
    for name, (options, concept) in cases.items():
        with pytest.raises(ValueError, match=f"recorded with {name}=.*record it anew"):
            unlearner(pipe, **options).unlearn(*concept, buffer=buffer)
    other = FDUnlearner(pipe, {**RUNS, "guidance_scale": 2.0}, False, **FAST)
    with pytest.raises(ValueError, match="recorded with pipeline_kwargs="):
        other.unlearn("dog", "cat", buffer=buffer)
    add_other_adapter(pipe)
    with pytest.raises(ValueError, match="recorded with active_adapters="):
        unlearner(pipe).unlearn("dog", "cat", buffer=buffer)


@pytest.mark.parametrize(("warmup", "each"), [(0, 1), (7, 1), (2, 3)])
def test_a_critic_is_updated_as_often_as_asked(pipe, monkeypatch, warmup, each) -> None:
    calls = []
    original = VariationalLoss.update

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(VariationalLoss, "update", counted)
    options = Variational(warmup_steps=warmup, critic_steps=each)
    unlearner(pipe, steps=4, estimator=options).unlearn(["dog", "apple"], "cat")
    assert len(calls) == warmup + 4 * each


def test_training_that_fails_with_a_critic_leaves_the_pipe(pipe) -> None:
    drawn, before = latents(pipe), state(pipe)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearner(pipe, estimator="variational").unlearn("dog", "cat", callback=stop)
    assert state(pipe) == before and torch.equal(latents(pipe), drawn)


def share(pipe, concept: str) -> float:
    """Share of a concept's pictures that are judged it: 24 pictures of 12 steps."""
    own = [cell for cell in cells() if cell[0] == concept]
    verdicts = judge_cells(pipe, load_emoji_judge(), own, range(50, 56), num_inference_steps=12)
    return sum(v.seen[0] == concept for v in verdicts) / len(verdicts)


def test_earlier_erasures_stay_erased() -> None:
    """The teacher of the second run is the model with the first adapter."""
    pipe = load_emoji_pipeline()
    first, second = (
        FDUnlearner(pipe, {"guidance_scale": 4.0}, False, trajectories=16, steps=8)
        for _ in range(2)
    )
    first.unlearn("dog", "cat", f="kl")
    assert share(pipe, "dog") < 0.15 and share(pipe, "banana") > 0.85
    second.unlearn("banana", "carrot", f="kl")
    assert pipe.get_active_adapters() == ["forget-dog", "forget-banana"]
    assert share(pipe, "banana") < 0.15 and share(pipe, "dog") < 0.15
    assert share(pipe, "pizza") > 0.75


def test_what_is_retained_is_the_pipe_with_its_adapters(pipe) -> None:
    """A dog that is a cat already stays a cat."""
    unlearner(pipe, steps=40).unlearn("dog", "cat")
    worker = unlearner(pipe, retain=["a dog"])
    buffer = worker.record("apple", "tree")
    rows = buffer.entries("retain")
    target = buffer.predictions(rows).float()
    torch.testing.assert_close(ask(pipe.unet, buffer, rows), target, rtol=0, atol=5e-3)
    pipe.disable_lora()
    assert (ask(pipe.unet, buffer, rows) - target).abs().max() > 0.02


def test_two_concepts_in_one_run() -> None:
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, False, trajectories=24, steps=12)
    worker.unlearn(["dog", "banana"], ["cat", "carrot"], f="kl")
    assert share(pipe, "dog") < 0.15 and share(pipe, "banana") < 0.15
    assert share(pipe, "pizza") > 0.75 and share(pipe, "cat") > 0.75


def test_runs_may_be_unguided(pipe) -> None:
    worker = FDUnlearner(pipe, {**RUNS, "guidance_scale": 1.0}, False, steps=2, trajectories=2)
    worker.unlearn("dog", NegativeGuidance())
    assert len(worker.history) == 2
