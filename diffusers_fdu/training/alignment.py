"""Which token of one prompt does the work of which token of another."""

from __future__ import annotations

import torch
from torch import Tensor


def align(target: Tensor, anchor: Tensor) -> Tensor:
    """For every token of the target the anchor's token that takes its place.

    Dynamic time warping (Sakoe and Chiba, 1978): of all monotone paths through both sequences,
    the one with the least sum of squared distances. Equal beginnings are paired as they are, and
    "Mickey Mouse" against "dog" needs no tokenizer. Of several anchor tokens on one target token
    the nearest is taken.

    Args:
        target: token vectors (B, L, D).
        anchor: token vectors (B, M, D).

    Returns:
        Vectors of the anchor, (B, L, D).
    """
    # The path is found on the CPU: hundreds of steps, one after the other, of some numbers each.
    cost = torch.cdist(target, anchor).square().cpu()
    steps = _path_steps(cost)
    batch, length, width = cost.shape
    nearest = torch.full((batch, length), torch.inf, dtype=cost.dtype)
    chosen = torch.zeros(batch, length, dtype=torch.long)
    every = torch.arange(batch)
    i, j = torch.full((batch,), length - 1), torch.full((batch,), width - 1)
    for _ in range(length + width - 1):
        here = cost[every, i, j]
        is_nearer = here < nearest[every, i]
        nearest[every, i] = torch.where(is_nearer, here, nearest[every, i])
        chosen[every, i] = torch.where(is_nearer, j, chosen[every, i])
        step = steps[every, i, j]  # at the origin nothing moves any more
        i, j = i - (step != 2).long(), j - (step != 1).long()
        i, j = i.clamp(min=0), j.clamp(min=0)
    index = chosen.to(anchor.device)[..., None].expand(-1, -1, anchor.shape[2])
    return anchor.gather(1, index)


def _path_steps(cost: Tensor) -> Tensor:
    """How the best path reaches each pair: 0 by a step in both, 1 in the target, 2 in the anchor.

    One anti-diagonal at a time, whose pairs do not depend on each other.
    """
    batch, length, width = cost.shape
    total = torch.full((batch, length + 1, width + 1), torch.inf, dtype=cost.dtype)
    total[:, 0, 0] = 0
    steps = torch.zeros(batch, length, width, dtype=torch.long)
    for diagonal in range(length + width - 1):
        i = torch.arange(max(0, diagonal - width + 1), min(length, diagonal + 1))
        j = diagonal - i
        before = torch.stack([total[:, i, j], total[:, i, j + 1], total[:, i + 1, j]])
        best, steps[:, i, j] = before.min(0)
        total[:, i + 1, j + 1] = best + cost[:, i, j]
    return steps
