"""Gradient surgery: take from one gradient what works against another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project(gradient: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Take the part of a gradient away that points against another, in place.

        g <- g - min(<g, h>, 0) / |h|^2 h

    over all tensors as one vector (Yu et al., "Gradient Surgery for Multi-Task Learning", arXiv
    2001.06782, here in one direction: the retain gradient stays whole). Both have to be whole
    gradients: summed over micro-batches and processes before.

    Args:
        gradient: changed.
        other: of the same shapes.

    Returns:
        The cosine of the two before, ().
    """
    dot = torch.stack(
        [(g.float() * h.float()).sum() for g, h in zip(gradient, other, strict=True)]
    )
    norms = [
        torch.stack(torch._foreach_norm(list(side))).float().norm() for side in (gradient, other)
    ]
    tiny = torch.finfo(torch.float32).tiny
    total, (own, square) = dot.sum(), (norms[0], norms[1].square())
    share = total.clamp(max=0) / square.clamp(min=tiny)
    torch._foreach_sub_(list(gradient), [h * share for h in other])
    return total / (own * norms[1]).clamp(min=tiny)
