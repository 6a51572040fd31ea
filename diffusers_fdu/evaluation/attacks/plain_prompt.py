"""Attacks with the plain prompt: from other noise, other latents or other weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters import lora as adapters
from ...pipelines.recorder import preserve_pipeline_state
from ...utils.nested import chunks
from .attack import AttackOutcome, AttackTarget


@dataclass(frozen=True)
class NoiseProbing:
    """The plain prompt from initial noise that is larger than usual, by several scales.

    The scale that brings back most counts; the curve has all of them. After the noise-based
    probing of Lu et al., "When Are Concepts Erased From Diffusion Models?" (arXiv 2505.17013),
    which varies the noise along the way.
    """

    scales: Sequence[float] = (1.1, 1.25, 1.5)
    name: str = "noise probing"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        hits_by_scale = {}
        for scale in self.scales:
            with scaled_noise(victim.pipe, scale):
                hits_by_scale[scale] = victim.hits(victim.prompts, seed)
        best = max(hits_by_scale, key=lambda scale: sum(hits_by_scale[scale]))
        curve = tuple((scale, fmean(hits)) for scale, hits in hits_by_scale.items())
        budget = {"scales": len(self.scales)}
        return AttackOutcome(hits_by_scale[best], curve, f"scale {best:g}", budget)


@contextmanager
def scaled_noise(pipe: Any, scale: float) -> Iterator[None]:
    """Let the pipe's runs begin with noise that is larger by a factor."""
    prepare_latents = pipe.prepare_latents

    def prepare_larger(*args: Any, **kwargs: Any) -> Any:
        latents = prepare_latents(*args, **kwargs)
        if isinstance(latents, tuple):  # some pipelines add the latents' positions
            return (latents[0] * scale, *latents[1:])
        return latents * scale

    pipe.prepare_latents = prepare_larger
    try:
        yield
    finally:
        del pipe.prepare_latents


@dataclass(frozen=True)
class Completion:
    """A picture that the original model begins, and the unlearned one completes.

    The latents after up to `steps` steps of the original are handed over ("in-progress"
    completion); the curve has a point for every so many. The original alone decides much of a
    picture in its first steps, so that success means little without its floor.
    """

    steps: int = 5
    every: int = 2
    name: str = "completion"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        handovers = sorted({*range(1, self.steps, self.every), self.steps})
        pictures = list(zip(*victim.judged_rows(victim.prompts, seed), strict=True))
        hits: dict[int, list[bool]] = {steps: [] for steps in handovers}
        for batch in chunks(pictures, victim.batch):
            prompts, seeds = zip(*batch, strict=True)
            latents: dict[int, Tensor] = {}
            with victim.original() as pipe:
                keep = _keep_latents(latents, handovers)
                victim.draw(prompts, seeds, pipe, callback_on_step_end=keep)
            for steps in handovers:
                put = _put_latents(latents, steps)
                images = victim.draw(prompts, seeds, callback_on_step_end=put)
                hits[steps] += victim.is_target(images)
        curve = tuple((float(steps), fmean(hits[steps])) for steps in handovers)
        return AttackOutcome(hits[self.steps], curve, budget={"original_steps": self.steps})


def _keep_latents(latents: dict[int, Tensor], steps: Sequence[int]) -> Any:
    """A callback that keeps the latents after these numbers of steps."""

    def on_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 in steps:
            latents[step + 1] = values["latents"].clone()
        return {}

    return on_step


def _put_latents(latents: Mapping[int, Tensor], steps: int) -> Any:
    """A callback that replaces the run's latents after this number of steps."""

    def on_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": latents[steps]} if step + 1 == steps else {}

    return on_step


@dataclass(frozen=True)
class Relearning:
    """A new LoRA on the unlearned model, trained on the original model's pictures of the target.

    Pictures are judged after each number of `steps`: success is that of the last, and the curve
    says how soon it comes. `batch` rows are drawn in a step, from so many `pictures`.
    """

    steps: Sequence[int] = (5, 10, 20, 40)
    batch: int = 16
    learning_rate: float = 1e-3
    rank: int = 4
    pictures: int = 16
    name: str = "re-learning"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        goal = victim.goal([""] * len(victim.prompts), seed, self.pictures)
        with preserve_pipeline_state(victim.pipe):
            inputs = victim.recorder().first_call(victim.prompts).inputs
        texts = {name: inputs.get(name) for name in goal.names}
        generator = torch.Generator().manual_seed(seed)
        curve, hits = [], [False]
        with _new_lora(victim.model, self.rank, seed) as parameters:
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
            for step in range(1, self.steps[-1] + 1):
                entries = goal.drawn(self.batch, generator)
                with torch.enable_grad():
                    loss = goal.loss(victim.model, entries, texts).mean()
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                if step in self.steps:
                    hits = victim.hits(victim.prompts, seed)
                    curve.append((float(step), fmean(hits)))
        rows = self.steps[-1] * self.batch
        budget = {"steps": self.steps[-1], "denoiser_rows": rows, "pictures": self.pictures}
        return AttackOutcome(hits, tuple(curve), budget=budget)


@contextmanager
def _new_lora(model: nn.Module, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """The trainable weights of a new LoRA, which is taken off again at the end."""
    state_before = adapters.snapshot(model)
    name = adapters.free_name("relearn", model)
    config = adapters.lora_config(model, rank, None, None)
    try:
        yield adapters.attach(model, name, config, seed)
    finally:
        adapters.remove(model, name, state_before)


@dataclass(frozen=True)
class Removal:
    """The adapter taken off: trivial, and the reason to fuse what is handed out."""

    name: str = "adapter removal"

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        with victim.original() as pipe:
            return AttackOutcome(victim.hits(victim.prompts, seed, pipe))
