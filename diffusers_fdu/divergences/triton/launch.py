r"""The fused loss in Triton: two launches forward, one backward, no memory for activations.

With n_b the number of elements of sample b under its mask (1 for `reduction="sum"`),

    s_b  = sum_i m_i (pred_i - target_i)^2 / (sigma^2 n_b)
    loss = sum_b w_b phi(s_b) / B
    d loss / d pred_i = c_b m_i (pred_i - target_i),   c_b = 2 w_b phi'(s_b) / (n_b B sigma^2)

The first launch sums the squares of (sample, split) in float32, the second adds the splits in a
fixed order and writes loss, s and c; so the result does not depend on scheduling. The backward
pass is one elementwise launch. Nothing waits for the device.

`loss.DivergenceLoss` is the reference and the only caller. Outside of `torch.compile` the
launches are made directly, since PyTorch's dispatcher costs more than they do; inside, they are
the operators `diffusers_fdu::divergence_forward` and `divergence_backward`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ..divergence import EXPONENT_CAP, Form
from .kernels import gradient_kernel, loss_kernel, sums_kernel
from .profile_table import Table

KINDS = {"linear": 0, "exponential": 1, "tv": 2, "table": 3}  # forms of a `Divergence`
BLOCK = 1024
PROGRAMS = 512  # about four for each multiprocessor of a large device


def _is_channels_last(x: Tensor) -> bool:
    layout = torch.channels_last
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=layout)


def _mask_arguments(mask: Tensor | None, pred: Tensor) -> dict[str, Any]:
    """What the kernels are told of a mask that broadcasts to the prediction.

    Element i of sample b has the weight mask[b stride + i // every % period], where the mask is
    contiguous in the prediction's memory order. It has size 1 in the dimensions it is broadcast
    over: leading ones make it repeat after `period`, and trailing ones make one of its elements
    count for `every` of the prediction. With one in between the mask is expanded.
    """
    if mask is None:  # a kernel takes a pointer even where it reads nothing
        return {"mask": pred, "stride": 0, "every": 1, "period": 1, "HAS_MASK": False}
    if not mask.is_floating_point() or mask.dtype == torch.float64:
        mask = mask.float()
    mask = mask.reshape((1,) * (pred.dim() - mask.dim()) + mask.shape)
    order = [0, 2, 3, 1] if _is_channels_last(pred) else [*range(pred.dim())]
    shape, sizes = [mask.shape[d] for d in order[1:]], [pred.shape[d] for d in order[1:]]
    present = [d for d, n in enumerate(shape) if n > 1]
    low, high = (present[0], present[-1] + 1) if present else (len(sizes), len(sizes))
    if shape[low:high] != sizes[low:high]:
        mask, low, high = mask.expand_as(pred), 0, len(sizes)
    period, every = math.prod(sizes[low:high]), math.prod(sizes[high:])
    stride = period if mask.shape[0] > 1 else 0
    mask = mask.permute(order).contiguous()
    return {"mask": mask, "stride": stride, "every": every, "period": period, "HAS_MASK": True}


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be the tensors'."""

    def guarded(pred: Tensor, *args: Any) -> Any:
        with torch.cuda.device_of(pred):
            return launch(pred, *args)

    return guarded


@_on_its_device
def _forward(
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    table: Tensor | None,
    kind: int,
    numbers: list[float],
    sigma: float,
    is_mean: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), s (B,) and c (B,), float32; pred and target lie in memory alike."""
    batch = pred.shape[0]
    size = pred.numel() // batch
    splits = max(1, min(triton.cdiv(size, BLOCK), PROGRAMS // batch))
    per_split = triton.cdiv(triton.cdiv(size, splits), BLOCK) * BLOCK
    splits = triton.cdiv(size, per_split)
    sums, counts = pred.new_empty((2, batch, splits), dtype=torch.float32).unbind()
    result = pred.new_empty((1 + 2 * batch,), dtype=torch.float32)
    loss, distance, slope = result[0], result[1 : batch + 1], result[batch + 1 :]
    masks = _mask_arguments(mask, pred)
    # The arguments stand as in the kernels.
    # fmt: off
    sums_kernel[(splits, batch)](
        pred, target, sums=sums, counts=counts, size=size, per_split=per_split,
        BLOCK=BLOCK, **masks,
    )
    loss_kernel[(1,)](
        sums, counts,
        sums if weights is None else weights,
        sums if table is None else table,
        loss, distance, slope, batch, splits, size, sigma * sigma, *numbers,
        0 if table is None else len(table) - 1,
        KIND=kind, HAS_MASK=masks["HAS_MASK"], HAS_WEIGHTS=weights is not None, IS_MEAN=is_mean,
        BLOCK_B=min(64, triton.next_power_of_2(batch)), BLOCK_S=triton.next_power_of_2(splits),
    )
    # fmt: on
    return loss, distance, slope


@_on_its_device
def _backward(
    pred: Tensor, target: Tensor, mask: Tensor | None, slope: Tensor, upstream: Tensor
) -> Tensor:
    """Gradient of the prediction, in its dtype and layout."""
    size, grad = pred.numel() // len(pred), torch.empty_like(pred)
    masks = _mask_arguments(mask, pred)
    gradient_kernel[(triton.cdiv(size, BLOCK), len(pred))](
        pred, target, slope=slope, upstream=upstream, grad=grad, size=size, BLOCK=BLOCK, **masks
    )
    return grad


FORWARD, BACKWARD = "diffusers_fdu::divergence_forward", "diffusers_fdu::divergence_backward"

torch.library.define(
    FORWARD,
    "(Tensor pred, Tensor target, Tensor? mask, Tensor? weights, Tensor? table, int kind, "
    "float[] numbers, float sigma, bool is_mean) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    BACKWARD, "(Tensor pred, Tensor target, Tensor? mask, Tensor slope, Tensor upstream) -> Tensor"
)
DEVICES = ("cpu", "cuda")
# What an operator returns may not share memory.
torch.library.impl(FORWARD, DEVICES, lambda *args: tuple(x.clone() for x in _forward(*args)))
torch.library.impl(BACKWARD, DEVICES, _backward)
torch.library.register_fake(BACKWARD, lambda pred, *args: torch.empty_like(pred))


@torch.library.register_fake(FORWARD)
def _forward_fake(pred: Tensor, *args: Any) -> tuple[Tensor, ...]:
    shapes = ((), pred.shape[:1], pred.shape[:1])
    return tuple(pred.new_empty(shape, dtype=torch.float32) for shape in shapes)


class _FusedLoss(torch.autograd.Function):
    """Autograd around the operators, so that they need none of their own."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, mask: Tensor | None, *args: Any) -> Any:
        compute: Any = _forward
        if torch.compiler.is_compiling():
            compute = torch.ops.diffusers_fdu.divergence_forward.default
        loss, distance, slope = compute(pred, target, mask, *args)
        ctx.save_for_backward(pred, target, mask, slope)
        ctx.mark_non_differentiable(distance)
        return loss, distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        compute: Any = _backward
        if torch.compiler.is_compiling():
            compute = torch.ops.diffusers_fdu.divergence_backward.default
        return compute(*ctx.saved_tensors, upstream), *[None] * 8


def fused_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    form: Form,
    table: Table | None,
    sigma: float,
    is_mean: bool,
) -> tuple[Tensor, Tensor]:
    """Loss () and s (B,), float32, see the module's equations; s has no gradient.

    Predictions are (B, ...), float32, bfloat16 or float16, in any layout; the mask broadcasts to
    them, and the weights are (B,). `form` and `table` are the profile's, see `Divergence`.
    """
    layout = torch.channels_last if _is_channels_last(pred) else torch.contiguous_format
    pred, target = (x.contiguous(memory_format=layout) for x in (pred, target))
    weights = None if weights is None else weights.contiguous()
    kind, rate, scale = form
    rows, first, step, decay = table[:4] if table else (None, 0.0, 1.0, 0.0)
    numbers = [rate, scale, first, step, decay, EXPONENT_CAP[torch.float32]]
    return _FusedLoss.apply(
        pred, target, mask, weights, rows, KINDS[kind], numbers, sigma, is_mean
    )
