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

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from .kernels import gradient_kernel, loss_kernel, sums_kernel
from .layout import mask_layout, paired

T = TypeVar("T")

KINDS = {"linear": 0, "exponential": 1, "tv": 2, "table": 3}
"""How the second launch computes a profile, see `Profile`."""

BLOCK = 1024
PROGRAMS = 512  # about four for each multiprocessor of a large device


class Profile(NamedTuple):
    """A profile as numbers that a kernel takes.

    Args:
        kind: one of `KINDS`.
        rate: "linear": phi = rate s. "exponential": phi = scale (exp(rate s) - 1).
        scale: see there.
        table: of `profile_table`, (knots + 1, 8) float32, for kind "table".
        first: log of the table's smallest s.
        step: distance of its knots in log s.
        decay: what it leaves out of phi': exp(-decay s).
        cap: exponent past which an exponential profile is its tangent.
    """

    kind: str
    rate: float = 0.0
    scale: float = 0.0
    table: Tensor | None = None
    first: float = 0.0
    step: float = 1.0
    decay: float = 0.0
    cap: float = 60.0


def _on_its_device(launch: Callable[..., T]) -> Callable[..., T]:
    """Triton launches on the current device, which need not be the tensors'."""

    @wraps(launch)
    def guarded(pred: Tensor, *args: Any) -> T:
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
    """Loss (), s (B,) and c (B,), float32; pred and target paired."""
    layout, batch = mask_layout(mask, pred), pred.shape[0]
    size = pred.numel() // batch
    splits = max(1, min(triton.cdiv(size, BLOCK), PROGRAMS // batch))
    per_split = triton.cdiv(triton.cdiv(size, splits), BLOCK) * BLOCK
    splits = triton.cdiv(size, per_split)
    work = pred.new_empty((2, batch, splits), dtype=torch.float32)
    result = pred.new_empty((1 + 2 * batch,), dtype=torch.float32)
    loss, distance, slope = result[0], result[1 : batch + 1], result[batch + 1 :]
    has_mask, has_weights = layout.mask is not None, weights is not None
    sums_kernel[(splits, batch)](
        pred,
        target,
        layout.mask if has_mask else pred,
        work[0],
        work[1],
        size,
        per_split,
        layout.stride,
        layout.every,
        layout.period,
        HAS_MASK=has_mask,
        BLOCK=BLOCK,
    )
    loss_kernel[(1,)](
        work[0],
        work[1],
        weights if has_weights else work,
        work if table is None else table,
        loss,
        distance,
        slope,
        batch,
        splits,
        size,
        sigma * sigma,
        *numbers,
        0 if table is None else len(table) - 1,
        KIND=kind,
        HAS_MASK=has_mask,
        HAS_WEIGHTS=has_weights,
        IS_MEAN=is_mean,
        BLOCK_B=min(64, triton.next_power_of_2(batch)),
        BLOCK_S=triton.next_power_of_2(splits),
    )
    return loss, distance, slope


@_on_its_device
def _backward(
    pred: Tensor, target: Tensor, mask: Tensor | None, slope: Tensor, upstream: Tensor
) -> Tensor:
    """Gradient of the prediction, in its dtype and layout."""
    layout, batch = mask_layout(mask, pred), pred.shape[0]
    size = pred.numel() // batch
    grad = torch.empty_like(pred)
    gradient_kernel[(triton.cdiv(size, BLOCK), batch)](
        pred,
        target,
        pred if layout.mask is None else layout.mask,
        slope,
        upstream,
        grad,
        size,
        layout.stride,
        layout.every,
        layout.period,
        HAS_MASK=layout.mask is not None,
        BLOCK=BLOCK,
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


@torch.library.impl(FORWARD, ("cpu", "cuda"))
def _forward_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    # An operator's results may not share memory.
    loss, distance, slope = _forward(*args)
    return loss.clone(), distance.clone(), slope.clone()


@torch.library.impl(BACKWARD, ("cpu", "cuda"))
def _backward_op(*args: Any) -> Tensor:
    return _backward(*args)


@torch.library.register_fake(FORWARD)
def _forward_fake(pred: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    of = partial(pred.new_empty, dtype=torch.float32)
    return of(()), of((pred.shape[0],)), of((pred.shape[0],))


@torch.library.register_fake(BACKWARD)
def _backward_fake(pred: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(pred)


class _FusedLoss(torch.autograd.Function):
    """Autograd around the operators, so that they need none of their own."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        pred: Tensor,
        target: Tensor,
        mask: Tensor | None,
        weights: Tensor | None,
        profile: Profile,
        sigma: float,
        is_mean: bool,
    ) -> tuple[Tensor, Tensor]:
        numbers = [*profile[1:3], *profile[4:]]
        compute: Any = _forward
        if torch.compiler.is_compiling():
            compute = torch.ops.diffusers_fdu.divergence_forward.default
        loss, distance, slope = compute(
            pred,
            target,
            mask,
            weights,
            profile.table,
            KINDS[profile.kind],
            numbers,
            sigma,
            is_mean,
        )
        ctx.save_for_backward(pred, target, mask, slope)
        ctx.mark_non_differentiable(distance)
        return loss, distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        pred, target, mask, slope = ctx.saved_tensors
        compute: Any = _backward
        if torch.compiler.is_compiling():
            compute = torch.ops.diffusers_fdu.divergence_backward.default
        return compute(pred, target, mask, slope, upstream), *[None] * 6


def fused_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    profile: Profile,
    sigma: float,
    is_mean: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and distances, see the module's equations; differentiable in the prediction.

    Args:
        pred: student's prediction, (B, ...), float32, bfloat16 or float16, any layout.
        target: teacher's, same shape, any of these dtypes and any layout.
        mask: broadcastable to the prediction, or None.
        weights: (B,), or None.
        profile: of the divergence.
        sigma: scale of the distance, in units of the prediction.
        is_mean: divide a sample's sum by its number of elements.

    Returns:
        The loss () and s (B,), both float32; s has no gradient.
    """
    pred, target = paired(pred, target)
    weights = None if weights is None else weights.contiguous()
    return _FusedLoss.apply(pred, target, mask, weights, profile, sigma, is_mean)
