"""A denoiser whose frozen weights are shared out over the processes: FSDP2's `fully_shard`.

Every process keeps its part of each frozen weight. A block's weights are brought together for its
call, and once more for its gradients, and let go. The adapter's weights are few and stay whole.
The training calls a copy of the denoiser's modules around the same weights, so that the pipe's own
stay as they are, and ending the training needs no word from the other processes.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard


@contextmanager
def sharded(
    model: nn.Module, parameters: Sequence[nn.Parameter], device: torch.device, enabled: bool
) -> Iterator[nn.Module]:
    """Yield what to call: a copy of the denoiser with its frozen weights shared out.

    All processes must call it equally often. The `parameters` that are trained stay whole and are
    the copy's, too; meanwhile the frozen weights wait in the CPU's memory. The model must have no
    hooks that bring its weights layer by layer.
    """
    if not enabled:
        yield model
        return
    trained = set(parameters)
    frozen = [p for p in model.parameters() if p not in trained]
    devices = [(p, p.device) for p in (*frozen, *parameters)]
    try:
        for parameter in frozen:
            parameter.data = parameter.data.to("cpu")
        for parameter in parameters:
            parameter.data = parameter.data.to(device)
        shards = _shared_out(_twin(model, trained), trained, device)
        with warnings.catch_warnings():
            # It warns of answers that are views; diffusers' models do not write into them.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            yield shards
    finally:
        for parameter, original_device in devices:
            parameter.data = parameter.data.to(original_device)


def blocks(model: nn.Module, names: Sequence[str] | None = None) -> list[nn.Module]:
    """What is brought together at a time: modules of the named classes, or of the lists in it."""
    if names:
        modules = [m for m in model.modules() if type(m).__name__ in names]
    else:
        lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
        modules = [member for members in lists for member in members]
    if not modules:
        missing = f"of the classes {', '.join(names)}" if names else "to shard"
        raise ValueError(f"{type(model).__name__} has no blocks {missing}: use shard=False")
    return modules


def _twin(model: nn.Module, trained: set[nn.Parameter]) -> nn.Module:
    memo = {id(p): p for p in trained}
    for parameter in model.parameters():
        # FSDP moves the data of the parameters that it is given.
        memo.setdefault(id(parameter), nn.Parameter(parameter.detach(), requires_grad=False))
    return remove_hook_from_module(copy.deepcopy(model, memo), recurse=True)


def _shared_out(model: nn.Module, trained: set[nn.Parameter], device: torch.device) -> nn.Module:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)  # what `accelerate launch` was told
    mesh = init_device_mesh(device.type, (get_world_size(),))
    # Inner modules come first, as `fully_shard` wants.
    for module in [*reversed(blocks(model, plugin.transformer_cls_names_to_wrap)), model]:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=plugin.reshard_after_forward,
            offload_policy=plugin.cpu_offload or OffloadPolicy(),
            ignored_params=trained,
        )
    return model
