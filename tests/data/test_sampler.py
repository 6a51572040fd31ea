from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.data.sampler import Batch, Sampler
from diffusers_fdu.data.teacher import predict
from diffusers_fdu.pipelines.denoiser import TimestepConvention
from diffusers_fdu.utils.distributed import Processes

COUNTS = (9, 3, 1)  # rows of each concept


def buffer(length: float = 1000.0) -> ReplayBuffer:
    """States numbered by their `sample`; timesteps spread over the length."""
    made = ReplayBuffer(torch.float32, TimestepConvention(is_unit=length == 1))
    text = made.add_text("x", {"encoder_hidden_states": torch.zeros(2, 3)})
    total = sum(COUNTS)
    concepts = [k for k, count in enumerate(COUNTS) for _ in range(count)]
    for i, concept in enumerate(concepts):
        leaves = {
            "sample": torch.full((1,), float(i)),
            "timestep": torch.tensor(i / total * length),
        }
        answer = made.add_prediction(torch.full((4, 2, 2), float(i)))
        state = made.add_state(leaves)
        made.add_row("unlearn", state, text, answer, concept)
        made.add_row("retain", state, text, answer)
    return made


def sampler(size: int = 6, **options) -> Sampler:
    return Sampler(nn.Linear(1, 1), buffer(), size, 0, **options)


def drawn(source: Sampler) -> Batch:
    return source.gather(source.draw())


def test_concepts_are_drawn_equally_often_however_many_rows_they_have() -> None:
    draw = sampler()
    seen: Counter = Counter()
    for _ in range(30):
        batch = drawn(draw)
        assert batch.size == 6 and len(batch.target) == 12
        seen.update(batch.concept.tolist())
    assert seen == {0: 60, 1: 60, 2: 60}
    # With a batch smaller than the concepts are many, they take turns.
    draw = sampler(size=2)
    turns = [k for _ in range(6) for k in drawn(draw).concept.tolist()]
    assert turns == [0, 1, 2] * 4


def test_rows_carry_their_own_concept_and_timestep() -> None:
    draw = sampler()
    for _ in range(5):
        batch = drawn(draw)
        number = batch.target[:, 0, 0, 0]
        torch.testing.assert_close(batch.timestep, number / sum(COUNTS) * 1000)
        owners = [0] * 9 + [1] * 3 + [2]
        assert batch.concept.tolist() == [owners[int(i)] for i in number[:6]]
        assert torch.equal(batch.calls[0].inputs["sample"].flatten(), number)


def test_timesteps_that_end_at_1_are_stretched() -> None:
    batch = drawn(Sampler(nn.Linear(1, 1), buffer(1.0), 6, 0))
    torch.testing.assert_close(batch.timestep, batch.target[:, 0, 0, 0] / sum(COUNTS) * 1000)


def test_rows_to_retain_in_a_call_of_their_own() -> None:
    together, apart = drawn(sampler()), drawn(sampler(apart=True))
    assert together.held is None and len(apart.target) == apart.size == 6
    assert apart.held.size == 0
    torch.testing.assert_close(torch.cat([apart.target, apart.held.target]), together.target)
    assert len(drawn(sampler(retains=False)).target) == 6
    assert drawn(sampler(retains=False, apart=True)).held is None


def test_spread_takes_each_row_at_most_once() -> None:
    draw = sampler()
    assert [i for _, i in draw.evenly_spaced(0, 3)] == [0, 4, 8]
    assert [i for _, i in draw.evenly_spaced(1, 16)] == [9, 10, 11]


def test_the_seed_decides() -> None:
    first, again = sampler(), sampler()
    other = Sampler(nn.Linear(1, 1), buffer(), 6, 1)
    same = [torch.equal(drawn(first).target, drawn(again).target) for _ in range(3)]
    assert all(same) and not torch.equal(drawn(sampler()).target, drawn(other).target)


def test_nothing_to_draw() -> None:
    held = buffer()
    held.clear("retain")
    with pytest.raises(ValueError, match="nothing was recorded to retain: use guidance_scale"):
        Sampler(nn.Linear(1, 1), held, 4, 0)
    assert len(drawn(Sampler(nn.Linear(1, 1), held, 4, 0, retains=False)).target) == 4


class CountingModel(nn.Module):
    """A denoiser that counts its passes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.passes = nn.Parameter(torch.tensor(2.0)), Counter()

    def forward(self, sample, timestep, encoder_hidden_states):
        self.passes["forward"] += 1
        answer = self.scale * sample[:, :, None] + encoder_hidden_states.sum()
        answer.register_hook(lambda _: self.passes.update(["backward"]))
        return (answer,)


def test_processes_that_train_a_sharded_denoiser_make_equally_many_calls() -> None:
    """Those without rows change neither answers nor gradients."""
    found = buffer()
    longer = found.add_text("y", {"encoder_hidden_states": torch.zeros(3, 3)})
    found.add_row("retain", 0, longer, 0)
    results = []
    for alike in (False, True):
        model = CountingModel()
        processes = Processes()
        processes.gather = lambda counts: [counts[0], counts[0] + 2]
        draw = Sampler(model, found, 4, 0, processes=processes, alike=alike)
        batch = draw.batch(
            [("unlearn", 0), ("unlearn", 1)], [("retain", found.count("retain") - 1)]
        )
        assert [call.places for call in batch.calls] == [[0, 1], [2], *[[], []] * alike]
        answer = predict(model, batch.calls)
        answer.square().sum().backward()
        results.append((answer.detach(), model.scale.grad, model.passes))
    for own, other in zip(*(result[:2] for result in results), strict=True):
        assert torch.equal(own, other)
    assert [passes for *_, passes in results] == [
        {"forward": 2, "backward": 2},
        {"forward": 4, "backward": 4},
    ]
