"""Attacks that change the noise and not the words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...utils.nested import chunks
from .attack import AttackOutcome, AttackTarget


@dataclass(frozen=True)
class NoiseProbing:
    """The plain prompt from initial noise that is larger than usual.

    Of the scales the one that brings back most counts; the curve has all of them. After the
    noise-based probing of Lu et al., "When Are Concepts Erased From Diffusion Models?" (arXiv
    2505.17013), which varies the noise along the way.

    Args:
        scales: of the initial noise.
    """

    scales: Sequence[float] = (1.1, 1.25, 1.5)
    name: str = "noise probing"

    @property
    def budget(self) -> Mapping[str, float]:
        """Scales tried."""
        return {"scales": len(self.scales)}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        asked, found = attack_target.asked(attack_target.target), []
        for scale in self.scales:
            with scaled_noise(attack_target.pipe, scale):
                found.append(attack_target.hits(asked, seed))
        curve = tuple((s, sum(h) / len(h)) for s, h in zip(self.scales, found, strict=True))
        best = max(found, key=sum)
        return AttackOutcome(best, curve, f"scale {self.scales[found.index(best)]:g}")


@contextmanager
def scaled_noise(pipe: Any, scale: float) -> Iterator[None]:
    """A pipe whose runs begin with noise that is larger by a factor."""
    own = pipe.prepare_latents

    def prepare(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        if isinstance(made, tuple):  # beside the places of the latents, which are no noise
            return (made[0] * scale, *made[1:])
        return made * scale

    pipe.prepare_latents = prepare
    try:
        yield
    finally:
        del pipe.prepare_latents


@dataclass(frozen=True)
class Completion:
    """A picture that the original model begins, and the unlearned one completes.

    The latents after so many steps of the original are handed over: "in-progress" completion. The
    original alone decides much of a picture in its first steps, so that success means little
    without its floor.

    Args:
        steps: of the original model, at most; the curve has all numbers of steps up to it.
        every: between two points of the curve.
    """

    steps: int = 5
    every: int = 2
    name: str = "completion"

    @property
    def budget(self) -> Mapping[str, float]:
        """Steps of the original model."""
        return {"original_steps": self.steps}

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """See `Attack`."""
        taken = sorted({*range(1, self.steps, self.every), self.steps})
        prompts, seeds = attack_target.plan(attack_target.asked(attack_target.target), seed)
        found: dict[int, list[bool]] = {steps: [] for steps in taken}
        for part in chunks(list(zip(prompts, seeds, strict=True)), attack_target.batch):
            asked, noise = [prompt for prompt, _ in part], [one for _, one in part]
            begun: dict[int, Tensor] = {}
            with attack_target.original() as pipe:
                attack_target.draw(asked, noise, pipe, callback_on_step_end=_kept(begun, taken))
            for steps in taken:
                images = attack_target.draw(asked, noise, callback_on_step_end=_put(begun, steps))
                found[steps] += list(attack_target.is_target(images))
        curve = tuple((float(steps), sum(hits) / len(hits)) for steps, hits in found.items())
        return AttackOutcome(found[self.steps], curve)


def _kept(begun: dict[int, Tensor], taken: Sequence[int]) -> Any:
    """Keeps the latents after so many steps."""

    def on_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step + 1 in taken:
            begun[step + 1] = values["latents"].clone()
        return {}

    return on_step


def _put(begun: Mapping[int, Tensor], steps: int) -> Any:
    """Puts these latents in the place of the run's own after as many steps."""

    def on_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": begun[steps]} if step + 1 == steps else {}

    return on_step
