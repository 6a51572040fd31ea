"""Concept inversion: token embeddings that make a model answer as another one did.

    v* = argmin_v E || eps(x_t, c(v), t) - goal(x_t, t) ||^2

c(v) is the conditioning that the pipe makes of prompts with v in their slots; the goal is what was
recorded at the same states, such as the original model's answers to an erased concept. This is
Circumventing Concept Erasure (Pham et al., arXiv 2308.01508), with that answer in place of the
noise that was added to a picture: the same minimum in expectation, with less variance.
"""

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
    """Rows of a buffer: states, and what is to be answered there.

    `names` are the denoiser's arguments that depend on the text, and `template_of` says which of
    several prompts a row is asked with.
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
        """How far the model is from the goal on B rows: mean squared error, (B,), float32.

        `texts` holds the conditioning (K, ...) of the K prompts for each argument.
        """
        device, dtype = placement(model)
        target = self.buffer.predictions(entries).to(device, torch.float32)
        calls = []
        for call in self.buffer.calls(entries, device, dtype):
            prompts = [self.template_of(entries[place]) for place in call.places]
            arguments = flatten(call.inputs)
            for name in self.names:
                text = texts[name]
                if text is not None:
                    text = text[prompts] if torch.is_tensor(text) else [text[k] for k in prompts]
                arguments[name] = text
            calls.append(DenoiserCall(unflatten(arguments), call.places))
        return (predict(model, calls).float() - target).flatten(1).square().mean(1)


@dataclass(frozen=True)
class Inversion:
    """How token embeddings are learned: steps of Adam, and the rows in each of them.

    The learning rate is in standard deviations of the embedding table, and falls to 0 linearly.
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
        """The vectors that come nearest to the goal, starting from where the slots' are.

        `marked` are prompts with the slots' marker, one for each of the goal's templates. The
        generator draws the rows. There is one tensor (count, width), float32, for each encoder.
        """
        vectors = [vector.clone().requires_grad_() for vector in slots.vectors]
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
            for vector, gradient in zip(vectors, zip(*parts, strict=True), strict=True):
                vector.grad = torch.stack(gradient).sum(0)
            optimizer.step()
            schedule.step()
        return [vector.detach() for vector in vectors]
