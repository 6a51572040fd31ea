"""Parts that halve when the memory runs out, and what says that it did."""

from __future__ import annotations

import pytest
import torch

from diffusers_fdu.utils.micro_batches import MicroBatches, is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError(CPU),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=str,
)
def test_errors_of_the_memory(error) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), RuntimeError(), RuntimeError(3), ValueError(CPU)]
)
def test_other_errors(error) -> None:
    assert not is_out_of_memory(error)


def limited(most: int, seen: list[int]):
    """Doubles its items, as long as there are not too many."""

    def work(part):
        seen.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in part]

    return work


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("size", [1, 3, 5, 16, 40])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_every_item_is_worked_on_once_and_in_order(size, most) -> None:
    seen: list[int] = []
    parts = MicroBatches(size).map(limited(most, seen), range(13))
    assert [item for part in parts for item in part] == [2 * i for i in range(13)]
    assert max(map(len, parts)) <= most


def test_a_size_that_failed_is_not_tried_again() -> None:
    micro, seen = MicroBatches(8, "pictures"), []
    with pytest.warns(RuntimeWarning, match="going on 4 pictures at a time"):
        micro.map(limited(4, seen), range(16))
    assert seen == [8, 4, 4, 4, 4] and micro.size == 4
    micro.map(limited(4, seen), range(8))
    assert seen[5:] == [4, 4]


def test_where_a_single_one_does_not_fit_the_message_says_what_would_help() -> None:
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RuntimeError, match="with 1 of the rows at a time: .*cpu_offload") as caught,
    ):
        MicroBatches(2).map(limited(0, []), [1])
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_relief_is_asked_for_once_nothing_can_be_halved() -> None:
    asked, seen = [True, False], []
    micro = MicroBatches(2, relief=lambda: asked.pop(0))
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="out of memory"):
        micro.map(limited(0, seen), range(4))
    assert seen == [2, 1, 1] and not asked


def test_other_errors_pass_at_once() -> None:
    def work(part):
        raise RuntimeError("shapes differ")

    micro = MicroBatches(8)
    with pytest.raises(RuntimeError, match="shapes differ"):
        micro.map(work, [1, 2])
    assert micro.size == 8


def test_what_failed_is_freed_before_the_next_try() -> None:
    """The exception's traceback must not keep the failed part's tensors alive."""

    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def work(part):
        assert Held.alive == 0
        held = Held()
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return held is None

    with pytest.warns(RuntimeWarning):
        MicroBatches(4).map(work, range(3))
