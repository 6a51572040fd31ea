"""Many rows in parts that fit the memory: a part that does not is halved and done again."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Result = TypeVar("Result")
MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")
"""Of errors that mean the same as those which Accelerate knows."""

HELP = (
    "call pipe.enable_model_cpu_offload(), load the denoiser quantised, or pass a smaller height "
    "and width in pipeline_kwargs"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the CPU or an accelerator has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError) or not isinstance((*error.args, None)[0], str):
        return False
    return should_reduce_batch_size(error) or any(text in str(error) for text in MESSAGES)


class MicroBatches:
    """How many rows are computed at once, which halves whenever the memory runs out.

    Args:
        size: rows at first.
        what: the rows' name in messages.
        relief: called when a single row does not fit; returns True if it freed memory in another
            way, so that the work is worth another try.

    Attributes:
        size: rows now.
    """

    def __init__(
        self, size: int, what: str = "rows", relief: Callable[[], bool] | None = None
    ) -> None:
        self.size, self.what, self.relief = size, what, relief

    def map(self, function: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Results of consecutive parts of the items; a part that fails is halved and repeated.

        Args:
            function: called with at most `size` of the items; has no effect if it fails.
            items: all of them.

        Raises:
            RuntimeError: if a single item does not fit.
        """
        results: list[Result] = []
        start = 0

        def part() -> None:
            nonlocal start
            results.append(function(items[start : start + self.size]))
            start += self.size

        while start < len(items):
            self.retry(part)
        return results

    def retry(self, function: Callable[[], Result]) -> Result:
        """What a function returns that works on `size` rows at a time, repeated until it fits.

        Args:
            function: looks at `size`; has no effect if it fails.

        Raises:
            RuntimeError: if it does not fit with a size of 1.
        """
        while True:
            try:
                return function()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)
            # Only here, outside of the handler, is nothing of the failed work alive any more.
            gc.collect()
            clear_device_cache()

    def _shrink(self, error: Exception) -> None:
        if self.size > 1:
            self.size = (self.size + 1) // 2
            doing = f"{self.size} {self.what} at a time"
        elif self.relief is not None and self.relief():
            doing = "with gradient checkpointing"
        else:
            raise RuntimeError(
                f"out of memory with 1 of the {self.what} at a time: free some memory, {HELP}"
            ) from error
        warnings.warn(f"out of memory: going on {doing}", RuntimeWarning, stacklevel=4)
