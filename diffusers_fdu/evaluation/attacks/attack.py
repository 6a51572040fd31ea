"""What an attack is, and the model under attack, which is said to have forgotten a concept.

Nothing but the pipeline itself is needed: the original model, which is the pipeline without the
adapter, draws the concept, and its denoiser calls on the way are what an attack must make the
unlearned model answer again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import nn

from ...adapters import lora as adapters
from ...data.concepts import Pair
from ...data.recording import record
from ...data.templates import fill
from ...pipelines.denoiser import denoiser_name
from ...pipelines.generate import generate
from ...pipelines.recorder import Recorder, preserve_pipeline_state
from ...training.inversion import Goal

FIRST_SEED = 50_000
"""Of the pictures that attacks are judged on; recorded runs use small seeds."""


@dataclass(frozen=True)
class AttackTarget:
    """A model under attack.

    Args:
        pipe: with the adapter on it and active, or with weights that were changed for good.
        target: what it is said to have forgotten.
        is_target: says of each picture whether it shows the target.
        templates: prompts with `{}` where the target goes.
        component: the denoiser; None: the pipe's first.
        adapter_name: of the adapter; None: `reference` is another pipe.
        reference: pipe of the original model; None: the pipe without the adapter.
        settings: of the pictures' runs, such as num_inference_steps and guidance_scale.
        pictures: drawn and judged for each seed of an attack.
        batch: pictures drawn at once.

    Raises:
        ValueError: if there is no original model, or a template has no place for the target.
    """

    pipe: Any
    target: str
    is_target: Callable[[Sequence[Image]], Sequence[bool]]
    templates: Sequence[str] = ("a photo of a {}",)
    component: str | None = None
    adapter_name: str | None = None
    reference: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 16
    batch: int = 16

    def __post_init__(self) -> None:
        if self.adapter_name is None and self.reference is None:
            raise ValueError("no original model: pass adapter_name, or reference")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the target")
        object.__setattr__(self, "component", denoiser_name(self.pipe, self.component))

    @property
    def model(self) -> nn.Module:
        """The denoiser under attack."""
        return getattr(self.pipe, str(self.component))

    @contextmanager
    def original(self) -> Iterator[Any]:
        """The pipe of the original model, while the context lasts."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapters.scaled(self.model, str(self.adapter_name), 0.0):
                yield self.pipe

    def asked(self, name: str) -> list[str]:
        """The templates with this in the target's place."""
        return [fill(template, name) for template in self.templates]

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], pipe: Any = None, **extra: Any
    ) -> list[Any]:
        """Pictures of prompts, one a seed; the pipe is as it was then.

        Args:
            prompts: what to draw.
            seeds: of the initial noise, as many.
            pipe: another than the one under attack.
            **extra: further arguments of the pipeline.
        """
        pipe = self.pipe if pipe is None else pipe
        arguments = {**self.settings, **extra}
        return generate(pipe, prompts, seeds, batch=self.batch, **arguments)

    def plan(self, prompts: Sequence[str], seed: int) -> tuple[list[str], list[int]]:
        """As many prompts, in turn, as pictures are judged, and their seeds.

        Args:
            prompts: to draw.
            seed: of the attack: each has its own pictures.
        """
        first = FIRST_SEED + seed * self.pictures
        asked = [prompts[i % len(prompts)] for i in range(self.pictures)]
        return asked, list(range(first, first + self.pictures))

    def hits(self, prompts: Sequence[str], seed: int, pipe: Any = None) -> list[bool]:
        """Whether pictures of these prompts show the target.

        Args:
            prompts: drawn in turn.
            seed: of the attack.
            pipe: another than the one under attack.
        """
        return list(self.is_target(self.draw(*self.plan(prompts, seed), pipe)))

    def goal(self, marked: Sequence[str], seed: int, pictures: int) -> Goal:
        """What the original model's denoiser does while it draws the target.

        Args:
            marked: for each template the prompt that shall be answered in the same way.
            seed: of the pictures' noise.
            pictures: how many are drawn.
        """
        own = self.asked(self.target)
        pairs = [Pair(marked[k], own[k], k) for k in (i % len(own) for i in range(pictures))]
        kwargs = {k: v for k, v in self.settings.items() if k != "num_inference_steps"}
        with self.original() as pipe:
            recorder = Recorder(pipe, kwargs, seed, self.batch, self.component)
            buffer = record(recorder, pairs, [], torch.float32, progress=False)
            with preserve_pipeline_state(pipe):
                texts = recorder.find_signature(marked[0], own[0]).texts
        return Goal(buffer, buffer.entries("unlearn"), tuple(texts))

    def recorder(self) -> Recorder:
        """Asks the pipe under attack for the conditioning of prompts."""
        kwargs = {k: v for k, v in self.settings.items() if k != "num_inference_steps"}
        recorder = Recorder(self.pipe, kwargs, batch=self.batch, component=self.component)
        with preserve_pipeline_state(self.pipe):
            recorder.find_signature(
                self.asked(self.target)[0], ""
            )  # finds out how to ask one question
        return recorder


@dataclass(frozen=True)
class AttackOutcome:
    """One run of an attack, with one seed.

    Args:
        hits: whether each picture shows the target again.
        curve: (what was spent, share of hits) along the way.
        found: what was found, such as an adversarial prompt; "": nothing that could be said.
    """

    hits: list[bool]
    curve: tuple[tuple[float, float], ...] = ()
    found: str = ""


class Attack(Protocol):
    """Tries to bring a concept back; leaves the pipe as it was."""

    @property
    def name(self) -> str:
        """In words."""
        ...

    @property
    def budget(self) -> Mapping[str, float]:
        """What one run may spend."""
        ...

    def __call__(self, attack_target: AttackTarget, seed: int) -> AttackOutcome:
        """One run.

        Args:
            attack_target: the model under attack.
            seed: of everything random in it.
        """
        ...
