"""The memory that a call takes, counted without taking it.

The call runs on fake tensors, which have shapes and no values, and every storage that it makes is
counted for as long as it lives: activations that autograd keeps, temporaries, gradients, and what
gradient checkpointing computes again. A module that looks at values, or whose quantised weights
have no fake form, is run for real.
"""

import copy
import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map_only

from ..pipelines.denoiser import extract_prediction, sample_name
from ..utils.micro_batches import is_out_of_memory
from .identity import plain_tensors


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of storages that operations make: `current` ones alive, and their `peak`.

    Storages of `uncounted` tensors are there already. `plain` holds what operations are given in
    place of some tensors, by their ids.
    """

    def __init__(
        self, uncounted: Iterable[Tensor] = (), plain: Mapping[int, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.plain = plain or {}
        self.current = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}
        for tensor in uncounted:
            self._watch(tensor.untyped_storage(), 0)

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        # A view shares the storage of its base. The address of the C++ object tells storages
        # apart, also fake ones, and is free for another once the storage is gone.
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
        if self.plain:
            args, kwargs = tree_map_only(
                Tensor, lambda value: self.plain.get(id(value), value), (args, kwargs)
            )
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if torch.is_tensor(value):
                storage = value.untyped_storage()
                self._watch(storage, storage.nbytes())
        return output


def weight_bytes(module: nn.Module, recurse: bool = True) -> int:
    """Bytes of a module's weights as they are stored, quantised or not."""
    tensors = (*module.parameters(recurse), *module.buffers(recurse))
    return sum(part.numel() * part.element_size() for t in tensors for part in plain_tensors(t))


def twin(model: nn.Module) -> nn.Module:
    """The same modules again around the same weights, without hooks.

    What a call on fake tensors leaves behind, such as cached position tables, stays in the twin.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return remove_hook_from_module(copy.deepcopy(model, memo), recurse=True)


def denoiser_pass(
    model: nn.Module, autocast: Callable[[], Any], trained: Sequence[nn.Parameter] = ()
) -> Callable[[dict[str, Any]], None]:
    """A denoiser's forward pass; with its backward pass if there are weights that are trained."""

    def run(inputs: dict[str, Any]) -> None:
        with torch.set_grad_enabled(bool(trained)), autocast():
            output = extract_prediction(model(**inputs), inputs[sample_name(model)])
        if trained:
            loss = output.float().square().mean()
            del output  # as in the training, where autograd alone keeps what it needs
            torch.autograd.grad(loss, trained, allow_unused=True)

    return run


def peak_bytes(module: nn.Module, function: Callable[[Any], Any], inputs: Any) -> int | None:
    """Most bytes alive while a function runs that calls a module, besides the module's weights.

    The module has to be a `twin`; the inputs are tensors in any nesting. The answer is None if
    the function ran for real and out of memory, or could not run, as a RuntimeWarning says then.
    """
    weights = [*module.parameters(), *module.buffers()]
    device = weights[0].device

    def count(inputs: Any, uncounted: Iterable[Tensor], plain: Mapping[int, Tensor]) -> int:
        with StorageCounter(uncounted, plain) as counter:
            function(inputs)
        return counter.peak

    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it logs what it raises
    was_disabled, logger.disabled = logger.disabled, True
    try:
        # A module may have fake weights already: then they are what operations are given.
        # Others are real, and the mode makes a fake of each when an operation first meets it; the
        # same fakes are made here beforehand, so that the counter leaves the weights out.
        weights_mode = detect_fake_mode(weights)
        mode = weights_mode or FakeTensorMode(allow_non_fake_inputs=True)
        fake_inputs = tree_map_only(Tensor, lambda v: mode.from_tensor(v).to(device), inputs)
        plain = _plain(weights)
        uncounted = weights
        if weights_mode is None:
            uncounted = [mode.from_tensor(plain.get(id(w), w)) for w in weights]
        with mode:
            return count(fake_inputs, uncounted, plain)
    except Exception:  # whatever fake tensors cannot do here, real ones can
        pass
    finally:
        logger.disabled = was_disabled
    try:
        real_inputs = tree_map_only(Tensor, lambda v: v.to(device), inputs)
        return count(real_inputs, [weight.detach() for weight in weights], {})
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
    usual = (nn.Parameter, Tensor, FakeTensor)
    special = [w for w in weights if type(w) not in usual and not is_traceable_wrapper_subclass(w)]
    with torch._C.DisableTorchFunctionSubclass():
        return {id(w): w.detach().as_subclass(Tensor) for w in special}
