from __future__ import annotations

import pytest
import torch

from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.utils.nested import flatten, to_cpu, unflatten


def test_flatten_and_back() -> None:
    nested = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert flatten(nested) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert unflatten(flatten(nested)) == nested


def test_arguments_that_differ_between_batches_are_refused() -> None:
    first, second = ReplayBuffer(), ReplayBuffer()
    first.keep_constants({"ids": torch.zeros(2)})
    second.keep_constants({"ids": torch.zeros(2)})
    first.absorb(second)
    other = ReplayBuffer()
    other.keep_constants({"ids": torch.ones(2)})
    with pytest.raises(ValueError, match="argument ids changes from call to call"):
        first.absorb(other)


def test_what_is_kept_is_on_the_cpu_however_deep() -> None:
    """Another device stands in for an accelerator: from the meta device nothing can be copied."""
    with pytest.raises(NotImplementedError, match="meta"):
        to_cpu([1, (torch.zeros(2), torch.empty(2, device="meta"))])
    value = (torch.ones(2), [torch.zeros(1)], "x", None)
    assert to_cpu(value)[2:] == ("x", None) and torch.equal(to_cpu(value)[0], value[0])
