"""Concept inversion: token embeddings that make a model answer as another one did.

    v* = argmin_v E || eps(x_t, c(v), t) - goal(x_t, t) ||^2

c(v) is the conditioning that the pipe makes of prompts with v in their slots; the goal is what was
recorded at the same states, such as the original model's answers to an erased concept. Pham et
al., "Circumventing Concept Erasure Methods For Text-to-Image Generative Models" (arXiv
2308.01508), with that answer in place of the noise that was added to a picture: the same minimum
in expectation, with less variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.replay_buffer import DenoiserCall, Entry, ReplayBuffer
from ..data.teacher import predict
from ..pipelines.offload import placement
from ..pipelines.placeholder_tokens import PlaceholderTokens
from ..pipelines.recorder import Recorder
from ..utils.micro_batches import MicroBatches
from ..utils.nested import flatten, unflatten


@dataclass(frozen=True)
class Goal:
    """States, and what is to be answered there.

    Args:
        buffer: holds them.
        entries: rows of it; their texts are not looked at, unless `template_of` does.
        names: the denoiser's arguments that depend on the text.
        template_of: which of several prompts a row is asked with.
    """

    buffer: ReplayBuffer
    entries: Sequence[Entry]
    names: tuple[str, ...]
    template_of: Callable[[Entry], int] = lambda entry: entry.concept

    def drawn(self, size: int, generator: torch.Generator) -> list[Entry]:
        """Random rows."""
        places = torch.randint(len(self.entries), (size,), generator=generator)
        return [self.entries[i] for i in places.tolist()]

    def loss(self, model: nn.Module, entries: Sequence[Entry], texts: Mapping[str, Any]) -> Tensor:
        """How far the model is from the goal: mean squared error, (B,), float32.

        Args:
            model: the denoiser.
            entries: B rows.
            texts: conditioning (K, ...) of the K prompts, by argument.
        """
        device, dtype = placement(model)
        target = self.buffer.predictions(entries).to(device, torch.float32)
        parts = [
            self._asked(part, entries, texts) for part in self.buffer.calls(entries, device, dtype)
        ]
        answer = predict(model, parts).float()
        return (answer - target).flatten(1).square().mean(1)

    def _asked(
        self, part: DenoiserCall, entries: Sequence[Entry], texts: Mapping[str, Any]
    ) -> DenoiserCall:
        """The call with other texts."""
        rows = [self.template_of(entries[place]) for place in part.places]
        flat = flatten(part.inputs)
        for name in self.names:
            flat[name] = _picked(texts[name], rows)
        return DenoiserCall(unflatten(flat), part.places)


def _picked(text: Any, rows: list[int]) -> Any:
    if text is None:
        return None
    return text[rows] if torch.is_tensor(text) else [text[row] for row in rows]


@dataclass(frozen=True)
class Inversion:
    """How token embeddings are learned.

    Args:
        steps: of Adam.
        batch: rows in a step.
        learning_rate: at first, in standard deviations of the embedding table; falls to 0
            linearly.
    """

    steps: int = 100
    batch: int = 16
    learning_rate: float = 0.3

    def __call__(
        self,
        model: nn.Module,
        slots: PlaceholderTokens,
        recorder: Recorder,
        marked: Sequence[str],
        goal: Goal,
        generator: torch.Generator,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> list[Tensor]:
        """The vectors that come nearest to the goal, from where the slots' are.

        Args:
            model: the denoiser.
            slots: of the pipe.
            recorder: of the same pipe, which makes the conditioning.
            marked: prompts with the slots' marker, as many as the goal's templates.
            goal: what is to be answered.
            generator: of the rows.
            autocast: precision of the denoiser.

        Returns:
            One tensor (count, width) for each text encoder, float32, without gradient.
        """
        vectors = [own.clone().requires_grad_() for own in slots.vectors]
        groups: list[dict[str, Any]] = [
            {"params": [vector], "lr": self.learning_rate * slots.embedding_std(i)}
            for i, vector in enumerate(vectors)
        ]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        micro = MicroBatches(self.batch)

        def gradients(rows: Sequence[Entry]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                texts = slots.conditioning(recorder, marked, goal.names, vectors)
                with autocast():
                    loss = goal.loss(model, rows, texts).sum() / self.batch
                return torch.autograd.grad(loss, vectors)

        for _ in range(self.steps):
            parts = micro.map(gradients, goal.drawn(self.batch, generator))
            for vector, own in zip(vectors, zip(*parts, strict=True), strict=True):
                vector.grad = torch.stack(own).sum(0)
            optimizer.step()
            schedule.step()
        return [vector.detach() for vector in vectors]
