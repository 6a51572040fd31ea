from __future__ import annotations

import itertools

import pytest
import torch

from diffusers_fdu.training.closed_form import align


def paths(i: int, j: int):
    """All monotone paths from (0, 0) to (i, j)."""
    if i == 0 and j == 0:
        yield [(0, 0)]
    for di, dj in ((1, 1), (1, 0), (0, 1)):
        if i >= di and j >= dj:
            for path in paths(i - di, j - dj):
                yield [*path, (i, j)]


@pytest.mark.parametrize(("length", "width"), [(1, 1), (4, 4), (5, 3), (3, 5), (1, 4), (4, 1)])
def test_agrees_with_the_best_of_all_paths(length, width) -> None:
    torch.manual_seed(length * 10 + width)
    target = torch.randn(6, length, 3, dtype=torch.float64)
    anchor = torch.randn(6, width, 3, dtype=torch.float64)
    aligned = align(target, anchor)
    for n in range(6):
        cost = (target[n, :, None] - anchor[n, None]).square().sum(-1)
        best = min(
            paths(length - 1, width - 1), key=lambda p, cost=cost: sum(cost[i, j] for i, j in p)
        )
        for i, steps in itertools.groupby(best, key=lambda pair: pair[0]):
            nearest = min((j for _, j in steps), key=lambda j, i=i, cost=cost: cost[i, j])
            assert torch.equal(aligned[n, i], anchor[n, nearest])


def test_equal_texts_are_paired_as_they_are() -> None:
    text = torch.randn(2, 7, 4)
    assert torch.equal(align(text, text), text)


def test_a_name_of_two_words_takes_one() -> None:
    words = torch.eye(6) * 10
    a, mickey, mouse, dog, in_, paris = words
    target = torch.stack([a, mickey, mouse, in_, paris])[None]
    anchor = torch.stack([a, dog, in_, paris, paris])[None]
    near = anchor.clone()
    near[0, 1] = 0.5 * (mickey + mouse)  # a dog is nearer to Mickey Mouse than "in" is
    aligned = align(target, near)
    assert torch.equal(aligned[0], near[0][[0, 1, 1, 2, 3]])
