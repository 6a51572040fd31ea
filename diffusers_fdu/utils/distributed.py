"""Processes that train one adapter together, through Accelerate.

Every process draws the same global batch and takes its own part of it, so that the mean over
processes of what each computes is what one process would compute on the whole. Only gradients of
the adapter (and of a critic) travel, and what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import (
    broadcast,
    gather_object,
    parse_flag_from_env,
    reduce,
    wait_for_everyone,
)
from torch import Tensor


class Processes:
    """Those that take part; this one alone unless `together`.

    Args:
        together: whether the processes that `accelerate launch` or `torchrun` started train one
            adapter; otherwise each trains its own.

    Attributes:
        rank: which one this is.
        count: how many there are.
    """

    def __init__(self, together: bool = False) -> None:
        state = _state() if together else None
        self.rank: int = state.process_index if state else 0
        self.count: int = state.num_processes if state else 1

    @property
    def is_main(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def own(self, items: Sequence[Any]) -> list[Any]:
        """This one's part of what all have, in equal parts where the number allows it."""
        return list(
            items[self._start(self.rank, len(items)) : self._start(self.rank + 1, len(items))]
        )

    def _start(self, rank: int, length: int) -> int:
        return rank * length // self.count

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """What all have, in the order of their ranks."""
        return list(items) if self.count == 1 else gather_object(list(items))

    def check_same(self, what: str, value: Any) -> None:
        """Refuse to go on if processes do not have the same.

        Raises:
            ValueError: on every process.
        """
        found = self.gather([value])
        if any(other != found[0] for other in found):
            raise ValueError(
                f"processes differ in {what}: {', '.join(map(str, found))}; all of them need to "
                "see the same files"
            )

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            wait_for_everyone()

    def most(self, count: int) -> int:
        """The largest count that any has."""
        return max(self.gather([count]))

    @torch.no_grad()
    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one dtype to their mean over all."""
        if self.count > 1 and tensors:
            _put(tensors, reduce(_flat(tensors), reduction="mean"))

    @torch.no_grad()
    def agree_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one dtype to what the main process has."""
        if self.count > 1 and tensors:
            _put(tensors, broadcast(_flat(tensors)))


def _state() -> PartialState:
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _put(tensors: Sequence[Tensor], flat: Any) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
