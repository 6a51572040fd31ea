"""Processes that train one adapter together, through Accelerate.

Every process draws the same global batch and takes its own part of it, so that the mean over
processes of what each computes is what one process would compute on the whole. Only gradients of
the adapter (and of a critic) travel, and what was recorded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState, utils
from torch import Tensor


class Processes:
    """The processes that `accelerate launch` or `torchrun` started, if they work together.

    Otherwise this one is alone: `rank` is its number, from 0, and `count` that of all. `is_main`
    says whether it speaks for all.
    """

    def __init__(self, together: bool = False) -> None:
        self.rank, self.count = 0, 1
        if together:
            use_cpu = utils.parse_flag_from_env("ACCELERATE_USE_CPU")
            state = PartialState(cpu=use_cpu or not torch.accelerator.is_available())
            self.rank, self.count = state.process_index, state.num_processes
        self.is_main = self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of what all have, in equal parts where the number allows it."""
        start, end = (rank * len(items) // self.count for rank in (self.rank, self.rank + 1))
        return list(items[start:end])

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        return list(items) if self.count == 1 else utils.gather_object(list(items))

    def check_same(self, what: str, value: Any) -> None:
        """Raise a ValueError on every process if they do not have the same value."""
        values = self.gather([value])
        if any(other != values[0] for other in values):
            raise ValueError(
                f"processes differ in {what}: {', '.join(map(str, values))}; all of them need to "
                "see the same files"
            )

    def wait(self) -> None:
        """Block until every process reaches this point."""
        if self.count > 1:
            utils.wait_for_everyone()

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one dtype to their mean over all processes."""
        self._exchange(tensors, utils.reduce)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors of one dtype to what the main process has."""
        self._exchange(tensors, utils.broadcast)

    @torch.no_grad()
    def _exchange(self, tensors: Sequence[Tensor], operation: Callable[..., Any]) -> None:
        if self.count == 1 or not tensors:
            return
        # They travel as one message: one for each tensor would wait for the network each time.
        flat = operation(torch.cat([tensor.detach().flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
