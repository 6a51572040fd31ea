"""One batch of prompts, drawn by the frozen pipeline under hooks, as a buffer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .clock import Clock
from .concepts import Pair
from .denoiser import sample_name, timestep_name
from .layout import Layout
from .recorder import Call, Recorder, entry
from .renoise import Clean, latents_like
from .replay import Entry, Leaves, ReplayBuffer
from .values import close, on_cpu, same

States = Literal["trajectory", "renoise"]
Run = tuple[str, Pair | None]
"""A prompt to draw, and the pair that it belongs to; None: it is retained."""

OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt


class Guided(NamedTuple):
    """A state to be answered away from the target, by negative guidance of a scale."""

    entry: Entry
    scale: float


@dataclass
class Drawn:
    """What a batch left.

    Args:
        buffer: its rows; states and texts of what is still to be answered.
        empty: index of the text of guided runs' other half.
        guided: to be answered away from the target.
        clean: pictures, to be noised anew.
        times: first and last time of the run.
    """

    buffer: ReplayBuffer
    empty: int | None = None
    guided: list[Guided] = field(default_factory=list)
    clean: list[Clean] = field(default_factory=list)
    times: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def absorb(self, other: Drawn) -> None:
        """Append what another batch left."""
        moved = self.buffer.absorb(other.buffer)
        if self.empty is None and other.empty is not None:
            self.empty = moved.text(other.empty)
        self.guided += [Guided(moved.entry(one.entry), one.scale) for one in other.guided]
        self.clean += [
            clean._replace(
                own=moved.text(clean.own),
                target=None if clean.target is None else moved.text(clean.target),
            )
            for clean in other.clean
        ]
        self.times += other.times


class Drawing:
    """What is known of a pipe while its batches are drawn.

    Args:
        recorder: holds the pipeline.
        layout: how it calls its denoiser.
        texts: the targets' conditioning, by prompt.
        dtype: in which states and predictions are kept.
        states: see `record`.
    """

    def __init__(
        self,
        recorder: Recorder,
        layout: Layout,
        texts: dict[str, Leaves],
        dtype: torch.dtype,
        states: States,
    ) -> None:
        self.recorder, self.layout, self.texts = recorder, layout, texts
        self.dtype, self.states, self.names = dtype, states, layout.texts
        self.sample, self.time = sample_name(recorder.model), timestep_name(recorder.model)

    def nothing(self) -> Drawn:
        """What is left before anything is drawn."""
        return Drawn(ReplayBuffer(self.dtype, Clock(self.time), self.layout.listed))

    def batch(self, runs: Sequence[Run], steps: int, number: int) -> Drawn:
        """Draw a batch.

        Args:
            runs: its prompts.
            steps: of its run.
            number: of the batch, which its noise depends on.
        """
        return _Batch(self, runs).draw(steps, number)


class _Batch:
    """A batch while it is drawn."""

    def __init__(self, drawing: Drawing, runs: Sequence[Run]) -> None:
        self.recorder, self.layout, self.texts = drawing.recorder, drawing.layout, drawing.texts
        self.names, self.states = drawing.names, drawing.states
        self.sample, self.time = drawing.sample, drawing.time
        self.runs, self.drawn = runs, drawing.nothing()
        self.buffer = self.drawn.buffer

    def draw(self, steps: int, number: int) -> Drawn:
        """Draw it."""
        runs, prompts = self.runs, [prompt for prompt, _ in self.runs]
        own = self.recorder.first_call(prompts).inputs
        latest: dict[str, Any] = {}
        first: dict[str, Any] = {}
        times: list[Tensor] = []
        calls = number  # so that the empty prompt is kept at other steps in each batch

        def on_call(call: Call) -> None:
            nonlocal calls
            is_kept, calls = calls % OTHER_EVERY == 0, calls + 1
            inputs, prediction = call.inputs, call.prediction
            assert prediction is not None  # only a stopped call has none
            state, constants = self._split(inputs, len(prediction))
            times.append(state[self.time][0].cpu())
            self.buffer.keep_constants(constants)
            for start in range(0, len(prediction), len(runs)):
                block = slice(start, start + len(runs))
                key = {name: value[block] for name, value in state.items()}
                texts = {n: v if (v := inputs.get(n)) is None else v[block] for n in self.names}
                is_own = all(close(texts[name], own.get(name)) for name in self.names)
                if not is_own and self.drawn.empty is None:
                    self.drawn.empty = self._other(texts, 0)
                if self.states == "renoise":
                    if is_own and not first:
                        first.update(key=key, texts=texts)
                    continue
                # Both halves of a guided step share x_t: keep it once.
                if not latest or not all(same(latest["key"][n], v) for n, v in key.items()):
                    latest.update(key=key, ids=self._states(key, len(runs)))
                if is_own or is_kept:
                    self._rows(latest["ids"], texts, prediction[block], is_own)

        seed = self.recorder.seed + self.recorder.batch * number
        latents = self.recorder.run(prompts, on_call, seed, num_inference_steps=steps)
        if not times:  # all of a short run's steps belong to another denoiser
            return self.drawn
        self.drawn.times.append((times[0], times[-1]))
        if first:
            name = self.sample
            key = {**first["key"], name: latents_like(latents, first["key"][name])}
            self._pictures(key, first["texts"])
        return self.drawn

    def _split(self, inputs: dict[str, Any], rows: int) -> tuple[Leaves, dict[str, Any]]:
        """What besides the text belongs to a row, batched, and what is the same for all."""
        state: Leaves = {}
        constants: dict[str, Any] = {}
        for name, value in inputs.items():
            if name in self.names:
                continue
            if name == self.time and value.dim() == 0:
                state[name] = value.expand(rows).clone()
            elif name in self.layout.rows:
                state[name] = value
            else:
                constants[name] = on_cpu(value)
        return state, constants

    def _states(self, key: Leaves, size: int) -> list[int]:
        return [self.buffer.add_state({n: v[i] for n, v in key.items()}) for i in range(size)]

    def _other(self, texts: Leaves, i: int) -> int:
        """Index of the conditioning of a run's other half: the empty or the negative prompt."""
        row = entry(texts, self.names, i)
        sums = [value.cpu().double().sum().item() for value in row.values() if value is not None]
        return self.buffer.add_text(f"\0{','.join(f'{value:.9g}' for value in sums)}", row)

    def _own(self, prompt: str, texts: Leaves, i: int) -> int:
        return self.buffer.add_text(prompt, entry(texts, self.names, i))

    def _target(self, pair: Pair) -> int:
        return self.buffer.add_text(pair.target, self.texts[pair.target])

    def _rows(self, ids: list[int], texts: Leaves, prediction: Tensor, is_own: bool) -> None:
        """Rows of one call: what was asked for, and what its target is to get."""
        for i, (prompt, pair) in enumerate(self.runs):
            answer = self.buffer.add_prediction(prediction[i])
            if not is_own:
                self.buffer.add_row("retain", ids[i], self._other(texts, i), answer)
            elif pair is None:
                self.buffer.add_row("retain", ids[i], self._own(prompt, texts, i), answer)
            elif pair.guidance is not None:
                asked = Entry(ids[i], self._target(pair), answer, pair.concept)
                self.drawn.guided.append(Guided(asked, pair.guidance))
            else:
                self.buffer.add_row("retain", ids[i], self._own(prompt, texts, i), answer)
                text = self._target(pair)
                self.buffer.add_row("unlearn", ids[i], text, answer, pair.concept)

    def _pictures(self, key: Leaves, texts: Leaves) -> None:
        """Keep what was drawn, to be noised anew."""
        for i, (prompt, pair) in enumerate(self.runs):
            state = {name: on_cpu(value[i]) for name, value in key.items()}
            own = self._own(prompt, texts, i)
            if pair is None:
                self.drawn.clean.append(Clean(state, own, None, 0, None))
            else:
                target = self._target(pair)
                self.drawn.clean.append(Clean(state, own, target, pair.concept, pair.guidance))
