"""What tells one pipe, one function, one training from another, as JSON types."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..adapters import lora as adapters
from ..pipelines.denoiser import denoiser_names

SAMPLED = 4096  # elements of each tensor that the fingerprint looks at


def pipe_facts(pipe: Any) -> dict[str, Any]:
    """A pipe's class, scheduler, weights, and the adapters on its denoisers."""
    scheduler = getattr(pipe, "scheduler", None)
    # What begins with "_" says how it was made, in any order.
    config = dict(getattr(scheduler, "config", {}))
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    return {
        "pipe": type(pipe).__name__,
        "scheduler": [type(scheduler).__name__, config],
        "weights": fingerprint(pipe),
        "adapters": {name: active_strengths(getattr(pipe, name)) for name in denoiser_names(pipe)},
    }


def active_strengths(model: nn.Module) -> dict[str, float]:
    """Strengths of the active adapters, which count as part of the frozen model."""
    return adapters.strengths(model, adapters.snapshot(model).active)


@torch.no_grad()
def fingerprint(pipe: Any) -> str:
    """A digest of dtype, shape and evenly spread elements of every weight in the pipe.

    Weights that hooks keep elsewhere are known by their shapes alone.
    """
    digest = hashlib.sha256()
    for name, part in sorted(getattr(pipe, "components", {}).items()):
        for key, value in part.state_dict().items() if isinstance(part, nn.Module) else ():
            for tensor in plain_tensors(value) if torch.is_tensor(value) else ():
                digest.update(f"{name}.{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
                if not tensor.is_meta:
                    flat = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
                    total = flat.float().cpu().double().sum().item()
                    digest.update(f":{total:.17g}\n".encode())
    return digest.hexdigest()


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that one is stored as: itself, or the parts of a quantised one."""
    value: Any = tensor.data
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name))
    else:
        yield value.as_subclass(Tensor)


def function_name(function: Any) -> str:
    """The name by which a cache knows a function; a ValueError if it has none of its own."""
    name = getattr(function, "cache_key", None)
    if name is None:
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '<')}"
        if "<" in name:
            raise ValueError(
                f"cannot tell {function!r} from others: give it an attribute cache_key, a text "
                "that changes with what it does"
            )
    return str(name)
