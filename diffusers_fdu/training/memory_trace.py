"""The memory that a call takes, counted without taking it.

The call runs on fake tensors, which have shapes and no values, and every storage that it makes is
counted for as long as it lives: activations that autograd keeps, temporaries, gradients, and what
gradient checkpointing computes again. A module that looks at values, or whose quantised weights
have no fake form, is run for real.
"""

from __future__ import annotations

import copy
import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map_only

from ..utils.micro_batches import is_out_of_memory


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make.

    Args:
        known: tensors whose storages do not count.
        plain: what operations are given in place of some tensors, by their ids.

    Attributes:
        current: bytes that are alive.
        peak: the most there were at once.
    """

    def __init__(
        self, known: Iterable[Tensor] = (), plain: Mapping[int, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.plain = plain or {}
        self.current = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}
        for tensor in known:
            self._watch(tensor, 0)

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        self._watch(tensor, tensor.untyped_storage().nbytes())

    def _watch(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            self.current -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.current += size
        self.peak = max(self.peak, self.current)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        if self.plain:
            args, kwargs = tree_map_only(
                Tensor, lambda value: self.plain.get(id(value), value), (args, kwargs)
            )
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if torch.is_tensor(value):
                self.add(value)
        return output


def twin(model: nn.Module) -> nn.Module:
    """The same modules again around the same weights, without hooks.

    What a call on fake tensors leaves behind, such as cached position tables, stays in the twin.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return remove_hook_from_module(copy.deepcopy(model, memo), recurse=True)


def peak_bytes(module: nn.Module, function: Callable[[Any], Any], inputs: Any) -> int | None:
    """Most bytes alive while a function runs, besides a module's weights.

    Args:
        module: what the function calls, a `twin`.
        function: called with the inputs.
        inputs: tensors in any nesting.

    Returns:
        None if it had to run for real and ran out of memory, or could not run at all, of which a
        RuntimeWarning says why.
    """
    weights = [*module.parameters(), *module.buffers()]
    device = weights[0].device

    def counted(given: Any, known: Iterable[Tensor], plain: Mapping[int, Tensor]) -> int:
        with StorageCounter(known, plain) as counter:
            function(given)
        return counter.peak

    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it logs what it raises
    before, logger.disabled = logger.disabled, True
    try:
        own = detect_fake_mode(weights)
        mode = own or FakeTensorMode(allow_non_fake_inputs=True)
        fake = tree_map_only(Tensor, lambda v: mode.from_tensor(v).to(device), inputs)
        plain = _plain(weights)
        known = weights if own else [mode.from_tensor(plain.get(id(w), w)) for w in weights]
        with mode:
            return counted(fake, known, plain)
    except Exception:  # whatever fake tensors cannot do here, real ones can
        pass
    finally:
        logger.disabled = before
    try:
        given = tree_map_only(Tensor, lambda v: v.to(device), inputs)
        return counted(given, [weight.detach() for weight in weights], {})
    except Exception as error:
        if not is_out_of_memory(error):
            name, reason = type(module).__name__, " ".join(str(error).split())[:200]
            warnings.warn(
                f"cannot tell what memory {name} takes ({type(error).__name__}: {reason})",
                RuntimeWarning,
                stacklevel=2,
            )
        return None


def _plain(weights: Iterable[Tensor]) -> dict[int, Tensor]:
    """Weights of classes that fake tensors refuse, as those of bitsandbytes, as plain ones."""
    known = (nn.Parameter, Tensor, FakeTensor)
    special = [w for w in weights if type(w) not in known and not is_traceable_wrapper_subclass(w)]
    with torch._C.DisableTorchFunctionSubclass():
        return {id(w): w.detach().as_subclass(Tensor) for w in special}
