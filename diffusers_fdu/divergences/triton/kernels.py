"""Triton kernels of the fused loss; `launch` launches them and has their equations.

Shapes stand beside each pointer: B samples of `size` elements, whose sums are split `splits`
times. All arithmetic is in float32.
"""

import triton
import triton.language as tl

# Arguments of one kind stand on one line.
# fmt: off


@triton.jit
def _expm1(x):
    # exp(x) - 1 loses digits near 0; eight terms are exact to 1e-8 below 1/2.
    series = 1.0 + x / 7.0 * (1.0 + x / 8.0)
    series = 1.0 + x / 5.0 * (1.0 + x / 6.0 * series)
    series = 1.0 + x / 3.0 * (1.0 + x / 4.0 * series)
    series = x * (1.0 + x / 2.0 * series)
    return tl.where(tl.abs(x) < 0.5, series, tl.exp(x) - 1.0)


@triton.jit
def _cubic(table, row, column, x, inside):
    # A row holds the coefficients of phi's cubic, then of phi''s.
    at = table + row * 8 + column
    c0 = tl.load(at, inside, 0.0)
    c1 = tl.load(at + 1, inside, 0.0)
    c2 = tl.load(at + 2, inside, 0.0)
    c3 = tl.load(at + 3, inside, 0.0)
    return c0 + x * (c1 + x * (c2 + x * c3))


@triton.jit
def _mask_at(mask, sample, i, inside, stride, every, period):
    at = sample * stride + (i // every) % period
    return tl.load(mask + at, inside, 0.0).to(tl.float32)


@triton.jit
def sums_kernel(
    pred, target,  # (B, size)
    mask,  # one value for `every` elements, repeated with `period`
    sums, counts,  # (B, splits)
    size, per_split, stride, every, period,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Sum of squares and of the mask for each (sample, split); grid (splits, B)."""
    sample, split = tl.program_id(1).to(tl.int64), tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, per_split, BLOCK):
        i = split * per_split + offset + tl.arange(0, BLOCK)
        inside = i < size
        p = tl.load(pred + sample * size + i, inside, 0.0).to(tl.float32)
        t = tl.load(target + sample * size + i, inside, 0.0).to(tl.float32)
        square = (p - t) * (p - t)
        if HAS_MASK:
            m = _mask_at(mask, sample, i, inside, stride, every, period)
            square *= m
            count += m
        total += square
    at = sample * tl.num_programs(0) + split
    tl.store(sums + at, tl.sum(total))
    if HAS_MASK:
        tl.store(counts + at, tl.sum(count))


@triton.jit
def loss_kernel(
    sums, counts,  # (B, splits)
    weights,  # (B,)
    table,  # (knots + 1, 8)
    loss,  # ()
    distance, slope,  # (B,): s and c
    batch, splits, size,
    square,  # sigma^2
    rate, scale, first, step, decay, cap,
    knots,  # one fewer than the table has rows
    KIND: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WEIGHTS: tl.constexpr, IS_MEAN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """Loss, s and c from the sums of all splits, in a fixed order; grid (1,)."""
    # Inside a compiled graph Python's floats arrive in float64.
    square = tl.cast(square, tl.float32)
    rate = tl.cast(rate, tl.float32)
    scale = tl.cast(scale, tl.float32)
    first = tl.cast(first, tl.float32)
    step = tl.cast(step, tl.float32)
    decay = tl.cast(decay, tl.float32)
    cap = tl.cast(cap, tl.float32)
    result = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, batch, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        inside = b < batch
        j = tl.arange(0, BLOCK_S)
        at = b[:, None] * splits + j[None, :]
        valid = inside[:, None] & (j < splits)[None, :]
        total = tl.sum(tl.load(sums + at, valid, 0.0), 1)
        if IS_MEAN:
            if HAS_MASK:
                count = tl.sum(tl.load(counts + at, valid, 0.0), 1)
                count = tl.where(count > 0, count, 1.0)
            else:
                count = tl.zeros([BLOCK_B], tl.float32) + size
        else:
            count = tl.zeros([BLOCK_B], tl.float32) + 1.0
        s = total / count / square
        if KIND == 0:
            phi = rate * s
            dphi = tl.zeros([BLOCK_B], tl.float32) + rate
        elif KIND == 1:
            exponent = rate * s
            capped = tl.minimum(exponent, cap)
            phi = scale * (_expm1(capped) + tl.exp(capped) * (exponent - capped))
            dphi = scale * rate * tl.exp(capped)
        elif KIND == 2:
            phi = tl.erf(tl.sqrt(s) * 0.35355339059327373)  # 1 / (2 sqrt 2)
            dphi = tl.exp(-s / 8) / tl.sqrt(tl.maximum(s, 1e-37)) * 0.19947114020071635
        else:
            u = (tl.log(tl.maximum(s, 1e-37)) - first) / step
            knot = tl.minimum(tl.maximum(tl.floor(u), -1.0), knots - 1.0)
            x = tl.where(knot < knots - 1.0, u - tl.maximum(knot, 0.0), 0.0)
            row = knot.to(tl.int32) + 1
            phi = tl.where(s > 0, tl.exp(_cubic(table, row, 0, x, inside)), 0.0)
            dphi = tl.exp(_cubic(table, row, 4, x, inside) - decay * s)
            if decay == 0:
                # A user's generator ends in its tangent in s, as in `divergences`.
                end = tl.exp(first + step * (knots - 1.0))
                phi += tl.where(s > end, dphi * (s - end), 0.0)
        # Comparisons and maxima lose a NaN on the way.
        phi = tl.where(s == s, phi, s)
        dphi = tl.where(s == s, dphi, s)
        weight = tl.zeros([BLOCK_B], tl.float32) + 1.0
        if HAS_WEIGHTS:
            weight = tl.load(weights + b, inside, 0.0).to(tl.float32)
        result += tl.where(inside, weight * phi, 0.0)
        tl.store(distance + b, s, inside)
        tl.store(slope + b, 2.0 * weight * dphi / (count * square * batch), inside)
    tl.store(loss, tl.sum(result) / batch)


@triton.jit
def gradient_kernel(
    pred, target,  # (B, size)
    mask,  # as in `sums_kernel`
    slope,  # (B,)
    upstream,  # ()
    grad,  # (B, size)
    size, stride, every, period,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Gradient of the prediction; grid (size / BLOCK, B)."""
    sample = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    c = tl.load(slope + sample) * tl.load(upstream).to(tl.float32)
    p = tl.load(pred + sample * size + i, inside, 0.0).to(tl.float32)
    t = tl.load(target + sample * size + i, inside, 0.0).to(tl.float32)
    g = c * (p - t)
    if HAS_MASK:
        g *= _mask_at(mask, sample, i, inside, stride, every, period)
    tl.store(grad + sample * size + i, g.to(grad.dtype.element_ty), inside)
