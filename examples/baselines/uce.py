"""Unified Concept Editing (Gandikota et al., arXiv 2308.14761), in closed form.

    min over W  sum_i || W c_i - W_old c*_i ||^2 + p sum_j || W c_j - W_old c_j ||^2
                + l || W - W_old ||^2

    W = (sum_i W_old c*_i c_i^T + p sum_j W_old c_j c_j^T + l W_old)
        (sum_i c_i c_i^T + p sum_j c_j c_j^T + l)^-1

for the keys and values of every cross-attention. c_i: token embeddings of the target's prompts,
c*_i those of the anchor's, from the first place on where the two differ to the end of the padding;
c_j: all of those of prompts that should stay. So did the first release, which begins at the last
token of a prompt that names nothing but the concept; the later one takes that token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_fdu import Concept
from diffusers_fdu.data.templates import fill, without
from diffusers_fdu.pipelines.tokenizers import vocabulary

from .common import Bench, Forgotten


def edited(
    weight: Tensor, old: Tensor, new: Tensor, kept: Tensor, preserve: float, ridge: float
) -> Tensor:
    """The minimum, (out, in).

    Args:
        weight: W_old, (out, in).
        old: c_i, (N, in).
        new: c*_i, (N, in).
        kept: c_j, (M, in).
        preserve: p.
        ridge: l.
    """
    w, c, goal, k = (value.double() for value in (weight, old, new, kept))
    eye = torch.eye(c.shape[1], dtype=torch.float64)
    left = w @ (goal.T @ c + preserve * k.T @ k + ridge * eye)
    right = c.T @ c + preserve * k.T @ k + ridge * eye
    return torch.linalg.solve(right, left.T).T.to(weight.dtype)


def differing(
    bench: Bench, targets: Sequence[str], anchors: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Embeddings of both prompts from the first token on that differs, (N, D) each."""
    old, new = bench.text(targets), bench.text(anchors)
    rows = []
    for a, b in zip(old, new, strict=True):
        first = int((a != b).any(1).nonzero()[0])
        rows.append((a[first:], b[first:]))
    return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])


@torch.no_grad()
def forget(
    pipe: Any,
    concept: Concept,
    seed: int,
    preserve: float = 1.0,
    ridge: float = 1.0,
    prompts: int = 32,
) -> Forgotten:
    """Edit a concept out of the pipe's UNet.

    Args:
        pipe: it is changed.
        concept: with an anchor in words.
        seed: of the prompts.
        preserve: weight of what should stay.
        ridge: weight of the old weights.
        prompts: of the target.
    """
    bench = Bench(pipe, concept, seed)
    pairs = bench.pairs(prompts)
    old, new = differing(bench, [p.target for p in pairs], [p.anchor for p in pairs])
    words = without(vocabulary(pipe), [concept.target])
    kept = bench.text([fill("a {}", word) for word in words]).flatten(0, 1)
    for layer in bench.layers():
        layer.weight.copy_(edited(layer.weight, old, new, kept, preserve, ridge))
    return bench.forgotten(0)
