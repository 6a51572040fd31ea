"""An adapter again from its recipe, byte for byte, or a refusal that says why not."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import build_tiny_pipe
from tiny import add_other_adapter, unlearner

from diffusers_fdu import Concept, NegativeGuidance, Variational, retrain


@pytest.mark.parametrize(
    ("target", "anchor", "f", "options"),
    [
        ("dog", NegativeGuidance(0.5), "js", {}),
        (["dog", "apple"], ["cat", "tree"], "hellinger", {"surgery": True}),
        (Concept("dog", "cat", aliases=["red dog"]), None, "chi2", {}),
        (Concept("dog", "cat", prompts=["a {}", "a red {}"]), None, "js", {}),
        ("dog", None, "tv", {"estimator": Variational(warmup_steps=1)}),
        ("dog", "cat", "alpha=0.3", {"early_stop": 0.0}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_recipe_trains_the_same_adapter_again(
    pipe, tmp_path, target, anchor, f, options
) -> None:
    worker = unlearner(pipe, **options)
    worker.unlearn(target, anchor, f=f)
    folder = worker.save(tmp_path / "a")
    recipe = json.loads((folder / "recipe.json").read_text())
    retrain(build_tiny_pipe(), recipe, progress=False).save(tmp_path / "b")
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = json.loads((tmp_path / "b" / "recipe.json").read_text())
    again["seconds"] = recipe["seconds"]
    assert again == recipe


GONE = {
    "retain_from": ("vocabulary", "mined"),
    "states": ("trajectory", "renoise"),
    "timestep_sampling": ("uniform", "min_snr"),
    "timestep_weights": ("uniform", "test_framework.<lambda>"),
}


def test_a_recipe_of_options_that_no_longer_exist(pipe) -> None:
    """Retrained where it asks for what is done anyway, and refused otherwise."""
    worker = unlearner(pipe, steps=2)
    worker.unlearn("dog", "cat")
    config = worker.recipe["config"]
    old = {**config, **{name: plain for name, (plain, _) in GONE.items()}}
    fresh = build_tiny_pipe()
    retrain(fresh, {**worker.recipe, "config": old}, progress=False)
    pairs = zip(pipe.unet.parameters(), fresh.unet.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for name, (_, other) in GONE.items():
        asked = {**worker.recipe, "config": {**old, name: other}}
        with pytest.raises(ValueError, match=f"{name}='{other}', and {name} no longer exists"):
            retrain(build_tiny_pipe(), asked)


def test_a_recipe_knows_the_adapters_that_were_there(pipe) -> None:
    add_other_adapter(pipe)
    worker = unlearner(pipe)
    worker.unlearn("dog", "cat")
    with pytest.raises(ValueError, match="on a pipe with the adapters {'other'.*has {}: load"):
        retrain(build_tiny_pipe(), worker.recipe, progress=False)
    fresh = build_tiny_pipe()
    add_other_adapter(fresh)
    retrain(fresh, worker.recipe, "again", progress=False)
    pairs = zip(pipe.unet.named_parameters(), fresh.unet.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name
