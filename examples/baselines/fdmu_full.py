"""f-DMU as it was released (arXiv 2509.21167): full key and value weights, closed forms.

    min over theta  E phi_f(s)
    s = || eps_theta(x_t, c_target, t) - sg eps(x_t, c_anchor, t) ||^2 / sigma^2

x_t: pictures of the anchor that the frozen model drew, noised; phi_f the profile of the
divergence, which for kl is the mean squared error of concept ablation. No closed-form start, no
adapter, and the teacher is asked in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusers_fdu import Concept, DivergenceLoss

from .common import PICTURES, Bench, Forgotten


def divergence_loss(
    bench: Bench, loss: DivergenceLoss, latents: Tensor, targets: list[str], anchors: list[str]
) -> Tensor:
    """Of noised pictures and the two prompts of each."""
    x, t, _ = bench.noised(latents)
    with torch.no_grad():
        wanted = bench.teacher(x, t, bench.text(anchors)).sample
    answer = bench.pipe.unet(x, t, bench.text(targets)).sample
    return loss(answer, wanted)


def forget(
    pipe: Any,
    concept: Concept,
    seed: int,
    f: str = "hellinger",
    sigma: float = 0.3,
    steps: int = 100,
    batch: int = 16,
    learning_rate: float = 5e-4,
    pictures: int = PICTURES,
) -> Forgotten:
    """Unlearn a concept from the pipe's UNet.

    Args:
        pipe: it is changed.
        concept: with an anchor in words.
        seed: of everything random.
        f: name of a divergence.
        sigma: its scale.
        steps: of AdamW.
        batch: pictures in a step.
        learning_rate: constant.
        pictures: of the anchor.
    """
    bench, criterion = Bench(pipe, concept, seed), DivergenceLoss(f, sigma)
    pairs = bench.pairs(pictures)
    latents = bench.pictures([pair.anchor for pair in pairs])

    def loss() -> Tensor:
        places = bench.picked(len(pairs), batch)
        targets = [pairs[i].target for i in places]
        anchors = [pairs[i].anchor for i in places]
        return divergence_loss(bench, criterion, latents[places], targets, anchors)

    return bench.train(loss, steps, learning_rate)
