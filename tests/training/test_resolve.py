"""The loss that f gives, and the learning rate that the width gives."""

from __future__ import annotations

import pytest
import torch
from conftest import build_tiny_pipe, latents
from tiny import unlearner

from diffusers_fdu import AutoDivergence, Conjugate, divergence, retrain


def test_the_learning_rate_follows_the_width(pipe) -> None:
    """0.64 over the text's width, 16; the recipe holds the number."""
    worker = unlearner(pipe, learning_rate="auto", steps=20)
    worker.unlearn("dog", "cat")
    assert worker.recipe["config"]["learning_rate"] == pytest.approx(0.04)
    assert max(record.learning_rate for record in worker.history) == pytest.approx(0.04)


def test_from_a_plain_start_the_rate_follows_the_root_of_the_width(pipe, tmp_path) -> None:
    plain = unlearner(pipe, learning_rate="auto", steps=1, init="lora")
    plain.unlearn("dog", "cat")
    expected = 0.64 / (128 * 16) ** 0.5
    assert plain.recipe["config"]["learning_rate"] == pytest.approx(expected)
    plain.save(tmp_path)
    # What goes on from an adapter does not begin with a B of 0.
    further = unlearner(build_tiny_pipe(), learning_rate="auto", steps=1)
    further.unlearn("dog", "cat", init_adapter=tmp_path)
    assert further.recipe["config"]["learning_rate"] == pytest.approx(0.04)


def test_a_conjugate_is_not_taken_for_kl(pipe) -> None:
    own = Conjugate("mine", lambda u: u**2, lambda v: v)
    with pytest.raises(TypeError, match="a Conjugate needs estimator='variational'"):
        unlearner(pipe).unlearn("dog", "cat", f=own)


def test_f_by_preference(pipe) -> None:
    class Swept:
        def best(self, prefer="balance"):
            return type("Best", (), {"f": {"erase": "tv"}[prefer]})

    worker = unlearner(pipe, steps=1)
    worker.unlearn("dog", "cat", f="auto")
    assert worker.recipe["f"] == "hellinger"
    worker.unlearn("dog", "cat", f=AutoDivergence("erase"))
    assert worker.recipe["f"] == "chi2"
    worker.unlearn("dog", "cat", f=AutoDivergence("erase", Swept()))
    assert worker.recipe["f"] == "tv"
    with pytest.raises(ValueError, match="unknown preference 'most': choose erase, balance"):
        worker.unlearn("dog", "cat", f=AutoDivergence("most"))


def test_the_variational_estimator_wants_a_conjugate(pipe) -> None:
    drawn = latents(pipe)
    worker = unlearner(pipe, estimator="variational", steps=3)
    with pytest.raises(ValueError, match="'le_cam' has no conjugate here"):
        worker.unlearn("dog", "cat", f="le_cam")
    with pytest.raises(TypeError, match="name of a divergence or a Conjugate, got Divergence"):
        worker.unlearn("dog", "cat", f=divergence("kl"))
    assert torch.equal(latents(pipe), drawn)
    own = Conjugate("pearson", lambda u: u**2 / 4 + u, lambda v: v)
    worker.unlearn("dog", "cat", f=own)
    assert worker.recipe["f"] == "conjugate:pearson"
    with pytest.raises(ValueError, match="names 'conjugate:pearson', which is not in it"):
        retrain(build_tiny_pipe(), worker.recipe)
