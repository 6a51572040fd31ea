"""Whether two halves of a recording agree, and recording that stops once they do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import build_tiny_pipe
from tiny import state, unlearner

from diffusers_fdu import NegativeGuidance
from diffusers_fdu.config import STAGES
from diffusers_fdu.data.rollout import Rollout
from diffusers_fdu.data.teacher import ask
from diffusers_fdu.settings import settings
from diffusers_fdu.training.agreement import ENOUGH, Agreement, _product


@pytest.fixture
def recorded(pipe):
    buffer = unlearner(pipe, trajectories=16, retain_weight=0.0).record("dog", "cat")
    rows = [("unlearn", i) for i in range(buffer.count("unlearn"))]
    return pipe, buffer, (rows[: len(rows) // 2], rows[len(rows) // 2 :])


def agreement(pipe, **options) -> Agreement:
    return Agreement(pipe, pipe.unet, settings({"rank": 4, **options}))


def away(pipe, buffer, rows) -> None:
    """Ask these rows for the opposite of the way to their anchors."""
    entries = [buffer.entry(row) for row in rows]
    answers = ask(pipe.unet, buffer, entries)
    wanted = 2 * answers - buffer.predictions(entries).float()
    for entry, value in zip(entries, wanted, strict=True):
        buffer._predictions[entry.prediction] = value.to(buffer.dtype)


def test_halves_that_are_one_agree(recorded) -> None:
    pipe, buffer, (first, _) = recorded
    before = state(pipe)
    assert agreement(pipe).cosine(buffer, (first, first)) > ENOUGH
    assert agreement(pipe)(buffer, [(first, first)])
    assert state(pipe) == before


def test_halves_that_want_opposite_things_do_not(recorded) -> None:
    pipe, buffer, (first, second) = recorded
    alike = agreement(pipe).cosine(buffer, (first, second))
    away(pipe, buffer, second)
    assert agreement(pipe).cosine(buffer, (first, second)) < -0.5 < 0.5 < alike
    assert not agreement(pipe)(buffer, [(first, first), (first, second)])


def test_it_is_the_cosine_of_the_mean_gradients(recorded, monkeypatch) -> None:
    """Against autograd over all rows at once, on halves between agreement and its opposite."""
    pipe, buffer, (first, second) = recorded
    away(pipe, buffer, second[::3])
    wanted = agreement(pipe)
    with wanted._attached() as parameters:
        means = []
        for half in (first, second):
            calls, target = buffer.batch(half, torch.device("cpu"), torch.float32)
            difference = pipe.unet(**calls[0].inputs)[0] - target
            value = difference.square().sum() / len(half)
            means.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    exact = torch.cosine_similarity(*means, dim=0).item()
    monkeypatch.setattr("diffusers_fdu.training.agreement.CALLS", 200)
    found = agreement(pipe).cosine(buffer, (first, second))
    assert abs(exact) < 0.9
    assert found == pytest.approx(exact, abs=0.2)


def test_a_call_is_not_multiplied_with_itself() -> None:
    """Products with itself would make noise look like agreement."""
    gradients = torch.randn(5, 7, dtype=torch.float64)
    pairs = [gradients[i] @ gradients[j] for i in range(5) for j in range(5) if i != j]
    assert _product(gradients) == pytest.approx(torch.stack(pairs).mean().item())


@pytest.mark.parametrize("options", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}])
def test_little_memory_changes_nothing(recorded, options) -> None:
    pipe, buffer, halves = recorded
    whole = agreement(pipe).cosine(buffer, halves)
    assert agreement(pipe, **options).cosine(buffer, halves) == pytest.approx(whole, abs=1e-3)


@pytest.fixture
def drawn(monkeypatch) -> Counter:
    """How many pictures were drawn, to unlearn and to retain."""
    found: Counter = Counter()
    group = Rollout.group

    def counted(self, runs, steps, number):
        found["retain" if runs[0][1] is None else "unlearn"] += len(runs)
        return group(self, runs, steps, number)

    monkeypatch.setattr(Rollout, "group", counted)
    return found


def answers(monkeypatch, *found: bool) -> list:
    """What the rule says, in turn; the halves that it was asked about."""
    left, asked = list(found), []

    def is_enough(self, buffer, halves) -> bool:
        asked.append([tuple(map(len, own)) for own in halves])
        return left.pop(0)

    monkeypatch.setattr(Agreement, "__call__", is_enough)
    return asked


def test_recording_stops_when_the_halves_agree(pipe, drawn, monkeypatch) -> None:
    asked = answers(monkeypatch, False, True)
    buffer = unlearner(pipe, trajectories="auto").record("dog", "cat")
    assert drawn == {"unlearn": 32, "retain": 96}
    assert len(asked) == 2
    for number, ((first, second),) in enumerate(asked):
        # Runs of a group have 2 or 3 steps, so halves of as many pictures differ a little.
        assert 8 * 2**number * 2 <= first <= 8 * 2**number * 3
        assert 8 * 2**number * 2 <= second <= 8 * 2**number * 3
    # The texts of all that was planned are there for the closed form.
    assert len(buffer.pairs) > 32 / 2 and len(buffer.kept_texts) > 96 / 2


def test_two_concepts_stop_together(pipe, drawn, monkeypatch) -> None:
    asked = answers(monkeypatch, True)
    unlearner(pipe, trajectories="auto").record(["dog", "tree"], "cat")
    assert drawn == {"unlearn": 32, "retain": 48} and len(asked[0]) == 2


def test_what_is_answered_at_the_end_is_recorded_whole(pipe, drawn, monkeypatch) -> None:
    asked = answers(monkeypatch)
    worker = unlearner(pipe, trajectories="auto", retain_weight=0.0)
    worker.record("dog", NegativeGuidance(1.0))
    assert drawn == {"unlearn": STAGES[-1]} and not asked


def test_without_a_closed_form_all_is_recorded(pipe, drawn, monkeypatch) -> None:
    asked = answers(monkeypatch)
    unlearner(pipe, trajectories="auto", retain_weight=0.0, init="lora").record("dog", "cat")
    assert drawn == {"unlearn": STAGES[-1]} and not asked


def test_if_it_never_stops_all_is_recorded(drawn, monkeypatch) -> None:
    answers(monkeypatch, False, False, False)
    found = []
    for trajectories in ("auto", 96):
        worker = unlearner(build_tiny_pipe(), trajectories=trajectories)
        found.append(worker.record("dog", "cat"))
    assert drawn == {"unlearn": 2 * 96, "retain": 2 * 288}
    auto, whole = found
    assert auto.count("unlearn") == whole.count("unlearn")
    rows = [sorted((e.state, e.concept) for e in one.entries("unlearn")) for one in found]
    assert len(rows[0]) == len(rows[1])
    assert torch.equal(auto.timesteps.sort().values, whole.timesteps.sort().values)


def test_the_closed_form_does_not_depend_on_how_much_was_recorded(monkeypatch) -> None:
    answers(monkeypatch, True)
    starts = []
    for trajectories in ("auto", 96):
        pipe = build_tiny_pipe()
        worker = unlearner(pipe, trajectories=trajectories, steps=1, learning_rate=1e-12)
        worker.unlearn("dog", "cat")
        starts.append(_update(pipe))
    assert starts[0].norm() > 0.01
    assert torch.dist(*starts) < 0.01 * starts[1].norm()


def _update(pipe) -> torch.Tensor:
    """B A of the first adapted layer, of which a base can be chosen freely."""
    parts = {n: p for n, p in pipe.unet.named_parameters() if "lora_" in n}
    first = next(n for n in parts if "lora_A" in n)
    return parts[first.replace("lora_A", "lora_B")].detach() @ parts[first].detach()


def test_the_recipe_says_what_was_decided(pipe) -> None:
    worker = unlearner(pipe, trajectories="auto", steps=1)
    worker.unlearn("dog", "cat")
    assert worker.recipe["config"]["trajectories"] == "auto"
    assert worker.recipe["buffer"]["unlearn"] >= 16 * 2
