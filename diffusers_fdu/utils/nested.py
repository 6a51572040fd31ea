"""Arguments of a denoiser: tensors, lists of tensors, numbers; compared, copied, sent."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.operations import recursively_apply
from torch import Tensor

RowInputs = dict[str, Any]
"""Arguments of one row by dotted name: tensors or any other values; None where left out."""

ROUNDING = 0.01  # relative; one text encoded twice differs by less, two texts by far more


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Parts of at most this size, in order."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def flatten(kwargs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keyword arguments as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return nested


def same(a: Any, b: Any, is_equal: Callable[[Tensor, Tensor], bool] = torch.equal) -> bool:
    """Whether two values are equal, tensors within lists and their shapes included."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(*pair, is_equal) for pair in zip(a, b, strict=True))
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and is_equal(a, b)
    return not torch.is_tensor(a) and not torch.is_tensor(b) and a == b


def nearly_same(a: Any, b: Any) -> bool:
    """Whether two values are one text, encoded twice."""

    def is_equal(a: Tensor, b: Tensor) -> bool:
        if not a.is_floating_point():
            return torch.equal(a, b)
        return bool((a - b).float().norm() <= ROUNDING * b.float().norm())

    return same(a, b, is_equal)


def to_cpu(value: Any) -> Any:
    """A value with its tensors on the CPU."""
    return recursively_apply(Tensor.cpu, value)


def clone_tensors(value: Any) -> Any:
    """A copy that no later step of the pipeline changes."""
    return recursively_apply(lambda tensor: tensor.detach().clone(), value)


def to_device(value: Any, device: torch.device, floating: torch.dtype | None) -> Any:
    """A value with its tensors on a device, the floating ones in another dtype unless it is None.

    From the CPU to CUDA they go through pinned memory, so that the copy does not wait for running
    kernels, which accelerate's `send_to_device` does.
    """

    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda" and tensor.device.type == "cpu":
            moved = tensor.pin_memory().to(device, non_blocking=True)
        else:
            moved = tensor.to(device)
        return moved.to(floating) if floating and tensor.is_floating_point() else moved

    return recursively_apply(move, value)
