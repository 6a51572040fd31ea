"""What an attack is, and the model under attack, which is said to have forgotten a concept.

Nothing but the pipeline itself is needed: the original model, which is the pipeline without the
adapter, draws the concept, and its denoiser calls on the way are what an attack must make the
unlearned model answer again.
"""

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

FIRST_SEED = 50_000  # of the pictures that attacks are judged on; recorded runs use small seeds


@dataclass(frozen=True)
class AttackTarget:
    """A model under attack, and the target that it is said to have forgotten.

    The pipe has the adapter active, or weights that were changed for good; the original model is
    the pipe without the adapter, or `reference`, another pipe. `is_target` says of each picture
    whether it shows the target, and `templates` have `{}` where the target goes. For each seed of
    an attack so many `pictures` are drawn with these settings, and judged.
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

    @property
    def prompts(self) -> list[str]:
        """The prompts that ask for the target."""
        return self.prompts_for(self.target)

    def prompts_for(self, name: str) -> list[str]:
        """The templates with another name in the target's place."""
        return [fill(template, name) for template in self.templates]

    @contextmanager
    def original(self) -> Iterator[Any]:
        """The pipe of the original model, while the context lasts."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapters.scaled(self.model, str(self.adapter_name), 0.0):
                yield self.pipe

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], pipe: Any = None, **extra: Any
    ) -> list[Any]:
        """A picture of each prompt with its seed, drawn by the pipe under attack or by another."""
        pipe = self.pipe if pipe is None else pipe
        return generate(pipe, prompts, seeds, batch=self.batch, **{**self.settings, **extra})

    def judged_rows(self, prompts: Sequence[str], seed: int) -> tuple[list[str], list[int]]:
        """The prompt, taken in turn, and the seed of each picture that is judged."""
        first = FIRST_SEED + seed * self.pictures
        in_turn = [prompts[i % len(prompts)] for i in range(self.pictures)]
        return in_turn, list(range(first, first + self.pictures))

    def hits(self, prompts: Sequence[str], seed: int, pipe: Any = None) -> list[bool]:
        """Whether each picture of these prompts shows the target."""
        return list(self.is_target(self.draw(*self.judged_rows(prompts, seed), pipe)))

    def goal(self, prompts: Sequence[str], seed: int, pictures: int) -> Goal:
        """What the original model's denoiser answers while it draws pictures of the target.

        The model under attack shall answer `prompts`, one for each template, in the same way. The
        seed is that of the pictures' noise.
        """
        rows = (i % len(self.templates) for i in range(pictures))
        pairs = [Pair(prompts[row], self.prompts[row], row) for row in rows]
        with self.original() as pipe:
            recorder = Recorder(pipe, self._recorded_settings, seed, self.batch, self.component)
            buffer = record(recorder, pairs, [], torch.float32, progress=False)
            with preserve_pipeline_state(pipe):
                text_names = recorder.find_signature(prompts[0], self.prompts[0]).texts
        return Goal(buffer, buffer.entries("unlearn"), tuple(text_names))

    def recorder(self) -> Recorder:
        """A recorder that gets the conditioning of prompts from the pipe under attack."""
        recorder = Recorder(
            self.pipe, self._recorded_settings, batch=self.batch, component=self.component
        )
        with preserve_pipeline_state(self.pipe):
            recorder.find_signature(self.prompts[0], "")  # finds out how to ask for one prompt
        return recorder

    @property
    def _recorded_settings(self) -> dict[str, Any]:
        return {k: v for k, v in self.settings.items() if k != "num_inference_steps"}


@dataclass(frozen=True)
class AttackOutcome:
    """One run of an attack, with one seed: whether each picture shows the target again.

    The curve has pairs of what was spent and the share of hits by then; `found` is what was found
    in words, such as an adversarial prompt, and the budget is what a run may spend.
    """

    hits: list[bool]
    curve: tuple[tuple[float, float], ...] = ()
    found: str = ""
    budget: Mapping[str, float] = field(default_factory=dict)


class Attack(Protocol):
    """Tries to bring a concept back; leaves the pipe as it was."""

    @property
    def name(self) -> str:
        """The attack in words."""
        ...

    def __call__(self, victim: AttackTarget, seed: int) -> AttackOutcome:
        """One run; the seed is that of everything random in it."""
        ...
