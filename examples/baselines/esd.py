"""Erased Stable Diffusion, ESD-x (Gandikota et al., arXiv 2303.07345), equation 7.

    min over theta  E || eps_theta(x_t, c, t) - goal ||^2
    goal = eps(x_t, t) - eta (eps(x_t, c, t) - eps(x_t, t))

x_t: pictures of the target that the student itself draws, guided, up to a random step. ESD-x
trains all of cross-attention (`CROSS`); with `trained=TRAINED`, keys and values alone, it is what
the release calls its strict variant. The equation is linear in the prediction, so that velocities
take the place of noise in a model that predicts these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusers_fdu import Concept

from .common import CROSS, Bench, Forgotten

START_GUIDANCE = 3.0
"""Of the student's own pictures, as released."""


@torch.no_grad()
def guided_away(bench: Bench, x: Tensor, t: Tensor, prompts: list[str], eta: float) -> Tensor:
    """The goal: the frozen model's answer, away from the concept."""
    empty = bench.teacher(x, t, bench.text([""] * len(prompts))).sample
    own = bench.teacher(x, t, bench.text(prompts)).sample
    return empty - eta * (own - empty)


@torch.no_grad()
def partly_drawn(bench: Bench, prompts: list[str], steps: int, stop: int) -> tuple[Tensor, Tensor]:
    """The student's x_t after `stop` of `steps` steps, and the timestep of the next."""
    unet, scheduler = bench.pipe.unet, type(bench.scheduler).from_config(bench.scheduler.config)
    scheduler.set_timesteps(steps)
    size = unet.config.sample_size
    shape = (len(prompts), unet.config.in_channels, size, size)
    x = torch.randn(shape, generator=bench.generator).to(unet.device)
    x = x * scheduler.init_noise_sigma
    text, empty = bench.text(prompts), bench.text([""] * len(prompts))
    for t in scheduler.timesteps[:stop]:
        own, other = unet(torch.cat([x, x]), t, torch.cat([text, empty])).sample.chunk(2)
        x = scheduler.step(other + START_GUIDANCE * (own - other), t, x).prev_sample
    return x, scheduler.timesteps[stop].expand(len(prompts))


def forget(
    pipe: Any,
    concept: Concept,
    seed: int,
    steps: int = 60,
    batch: int = 8,
    learning_rate: float = 3e-4,
    eta: float = 1.0,
    draw_steps: int = 15,
    trained: tuple[str, ...] = CROSS,
) -> Forgotten:
    """Erase a concept from the pipe's UNet; its anchor is not looked at.

    Args:
        pipe: it is changed.
        concept: what is to be erased.
        seed: of everything random.
        steps: of AdamW.
        batch: pictures in a step.
        learning_rate: constant.
        eta: strength of the negative guidance.
        draw_steps: of a whole picture of the student's.
        trained: suffixes of the layers whose weights change.
    """
    bench = Bench(pipe, concept, seed, trained)
    prompts = [pair.target for pair in bench.pairs()]

    def loss() -> Tensor:
        asked = [prompts[i] for i in bench.picked(len(prompts), batch)]
        (stop,) = bench.picked(draw_steps, 1)
        x, t = partly_drawn(bench, asked, draw_steps, stop)
        answer = bench.pipe.unet(x, t, bench.text(asked)).sample
        return (answer - guided_away(bench, x, t, asked, eta)).square().mean()

    return bench.train(loss, steps, learning_rate)
