from __future__ import annotations

import pytest
import torch

from diffusers_fdu.pipelines.call_signature import find_call_signature
from diffusers_fdu.utils.nested import clone_tensors, nearly_same, same

LENGTHS = (2, 2, 5)  # tokens of each prompt


def call(prompts):
    """A denoiser call as pipelines make them: a mask only if the prompts' lengths differ."""
    lengths = [LENGTHS[i] for i in prompts]
    longest = max(lengths)
    mask = torch.stack([torch.arange(longest) < n for n in lengths])
    return {
        "sample": torch.zeros(len(prompts), 4, 8, 8),
        "timestep": torch.tensor(999.0),
        "text": torch.stack([torch.full((longest, 3), float(i)) for i in prompts]),
        "mask": None if mask.all() else mask,
        "listed": [torch.full((LENGTHS[i], 3), float(i)) for i in prompts],
        "shapes": [[(1, 4, 4)]] * len(prompts),
        "ids": torch.zeros(3, 2),  # as many as there are prompts, by chance
        "scale": (1.0, 2.0, 3.0),
        "guidance": torch.ones(len(prompts)),
        "kind": "x",
        "nothing": None,
    }


def test_what_has_an_entry_for_each_prompt_and_what_depends_on_it() -> None:
    found = find_call_signature([call([i]) for i in range(3)], call(range(3)))
    assert found.rows == {"sample", "text", "mask", "listed", "shapes", "guidance"}
    assert found.listed == {"listed", "shapes"}
    assert found.texts == ("text", "mask", "listed")


def test_text_without_a_row_is_refused() -> None:
    singles = [{"bias": torch.full((4, 4), float(i))} for i in range(3)]
    batched = [{"bias": (torch.zeros(1, 4),)}] * 3
    with pytest.raises(ValueError, match="argument bias depends on the prompts"):
        find_call_signature(batched, {"bias": (torch.zeros(3, 4),)})
    with pytest.raises(ValueError, match="argument bias depends on the prompts"):
        find_call_signature(singles, {"bias": torch.ones(4, 4)})


def test_values_are_compared_within_lists() -> None:
    a = [torch.ones(2), (3, None)]
    assert same(a, [torch.ones(2), (3, None)]) and nearly_same(a, [torch.ones(2), (3, None)])
    assert not same(a, [torch.ones(2), (4, None)])
    assert not same(torch.ones(2), [1.0, 1.0])
    assert not same(torch.ones(2), torch.ones(1, 2))
    assert nearly_same([torch.ones(9)], [torch.ones(9) + 1e-4])
    assert not nearly_same([torch.ones(9)], [torch.ones(9) + 0.1])
    assert not nearly_same(torch.ones(9, dtype=torch.long), 2 * torch.ones(9, dtype=torch.long))


def test_copies_do_not_follow() -> None:
    value = [torch.zeros(2), "x"]
    kept = clone_tensors(value)
    value[0].add_(1)
    assert same(kept, [torch.zeros(2), "x"])
