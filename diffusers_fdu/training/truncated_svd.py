"""The largest singular values of many matrices at once, without a full decomposition.

Block Krylov iteration (Musco and Musco, arXiv 1504.05477): from a random block X, the space

    span [A X, (A A^T) A X, ..., (A A^T)^q A X]

holds the leading left singular vectors of A far more closely than its last block alone does, and
a Rayleigh-Ritz step finds them in it. For the few vectors that an adapter keeps this costs some
products with A, where a full decomposition costs its width cubed.
"""

import torch
from torch import Tensor

OVERSAMPLE = 8  # columns of the block beyond the rank
STEPS = 6  # multiplications by A A^T
SEED = 0


def truncated_svd(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular values and vectors of matrices (..., m, n), float64.

    In float32 the last digits of the vectors would be lost, and more on an accelerator, where it
    computes float32 products in TF32. The random block comes from a generator of its own, so that
    the result is deterministic. Matrices hardly wider than the space above are decomposed in full.

    Returns:
        Left vectors (..., m, rank), descending values (..., rank), right vectors (..., rank, n).
    """
    rows, columns = matrices.shape[-2:]
    rank = min(rank, rows, columns)
    if rows > columns:
        left, values, right = truncated_svd(matrices.mT, rank)
        return right.mT, values, left.mT
    width = rank + OVERSAMPLE
    if rows <= 2 * width * (STEPS + 1):
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return left[..., :rank], values[..., :rank], right[..., :rank, :]
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(width, columns, generator=generator, dtype=torch.float64)
    # Blocks are kept as rows: products of few columns are several times slower on the CPU.
    blocks = [_orthonormal(start.to(matrices) @ matrices.mT)]
    for _ in range(STEPS):
        blocks.append(_orthonormal(blocks[-1] @ matrices @ matrices.mT))
    space = _orthonormal(torch.cat(blocks, -2))
    # Rayleigh-Ritz: the leading vectors of the projections on the space, (..., k, n).
    projected = space @ matrices
    leading = torch.linalg.eigh(projected @ projected.mT).eigenvectors[..., -rank:].mT
    # Squares lose small values: what was chosen by them is decomposed as it is.
    wide, square = torch.linalg.qr((leading @ projected).mT)
    right, values, left = torch.linalg.svd(square)
    return (left @ leading @ space).mT, values, (wide @ right).mT


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span of rows, (..., k, n) with k at most n."""
    return torch.linalg.qr(rows.mT).Q.mT
