"""Concept ablation (Kumari et al., arXiv 2303.13516), the model-based variant with a text anchor.

    min over theta  E || eps_theta(x_t, c_target, t) - sg eps(x_t, c_anchor, t) ||^2
                    + weight E || eps_theta(x_t, c_anchor, t) - eps ||^2

x_t: pictures of the anchor that the frozen model drew, noised. Keys and values of cross-attention
are trained themselves. The equations are linear in the prediction, so that velocities take the
place of noise in a model that predicts these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusers_fdu import Concept

from .common import PICTURES, Bench, Forgotten


def ablation_loss(bench: Bench, latents: Tensor, targets: list[str], anchors: list[str]) -> Tensor:
    """The first term, of noised pictures and the two prompts of each."""
    x, t, _ = bench.noised(latents)
    with torch.no_grad():
        wanted = bench.teacher(x, t, bench.text(anchors)).sample
    answer = bench.pipe.unet(x, t, bench.text(targets)).sample
    return (answer - wanted).square().mean()


def regulariser(bench: Bench, latents: Tensor, anchors: list[str]) -> Tensor:
    """The second term: the usual loss on the anchor's pictures."""
    x, t, noise = bench.noised(latents)
    return (bench.pipe.unet(x, t, bench.text(anchors)).sample - noise).square().mean()


def forget(
    pipe: Any,
    concept: Concept,
    seed: int,
    steps: int = 100,
    batch: int = 16,
    learning_rate: float = 1e-3,
    weight: float = 1.0,
    pictures: int = PICTURES,
) -> Forgotten:
    """Ablate a concept from the pipe's UNet.

    Args:
        pipe: it is changed.
        concept: with an anchor in words.
        seed: of everything random.
        steps: of AdamW.
        batch: pictures in a step.
        learning_rate: constant.
        weight: of the regulariser; 0 leaves it out.
        pictures: of the anchor.
    """
    bench = Bench(pipe, concept, seed)
    pairs = bench.pairs(pictures)
    latents = bench.pictures([pair.anchor for pair in pairs])

    def loss() -> Tensor:
        places = bench.picked(len(pairs), batch)
        anchors = [pairs[i].anchor for i in places]
        value = ablation_loss(bench, latents[places], [pairs[i].target for i in places], anchors)
        return value + weight * regulariser(bench, latents[places], anchors) if weight else value

    return bench.train(loss, steps, learning_rate)
