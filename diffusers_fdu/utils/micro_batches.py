"""Many rows in parts that fit the memory: a part that does not is halved and done again."""

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Result = TypeVar("Result")
# These errors mean the same as those that Accelerate knows.
MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")
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
    """The number of rows that are computed at once, which halves whenever the memory runs out.

    Args:
        size: number of rows at first; the attribute has the present one.
        what: name of the rows in messages.
        relief: called when a single row does not fit; returns True if it freed memory in another
            way, so that the work is worth another try.
    """

    def __init__(
        self, size: int, what: str = "rows", relief: Callable[[], bool] | None = None
    ) -> None:
        self.size, self.what, self.relief = size, what, relief

    def map(self, function: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Results of a function of at most `size` consecutive items, which may be repeated.

        A part that does not fit is halved; if a single item does not, that is a RuntimeError.
        """
        results: list[Result] = []
        start = 0

        def part() -> Result:
            return function(items[start : start + self.size])

        while start < len(items):
            results.append(self.retry(part))
            start += self.size
        return results

    def retry(self, function: Callable[[], Result]) -> Result:
        """The result of a function that works on `size` rows at a time, repeated until it fits.

        If it does not fit with a size of 1, that is a RuntimeError.
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
            manner = f"{self.size} {self.what} at a time"
        elif self.relief is not None and self.relief():
            manner = "with gradient checkpointing"
        else:
            raise RuntimeError(
                f"out of memory with 1 of the {self.what} at a time: free some memory, {HELP}"
            ) from error
        warnings.warn(f"out of memory: going on {manner}", RuntimeWarning, stacklevel=4)
