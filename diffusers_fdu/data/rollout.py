"""One group of prompts, drawn by the frozen pipeline under hooks, as a buffer of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..pipelines.call_signature import CallSignature
from ..pipelines.denoiser import timestep_name
from ..pipelines.recorder import Call, Recorder, entry
from ..pipelines.timestep_convention import TimestepConvention
from ..utils.nested import RowInputs, nearly_same, same, to_cpu
from .concepts import Pair
from .replay_buffer import ReplayBuffer
from .rows import Entry

Run = tuple[str, Pair | None]
"""A prompt to draw, and the pair that it belongs to; None: it is retained."""

OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt


class Guided(NamedTuple):
    """A state to be answered away from the target, by negative guidance of a scale."""

    entry: Entry
    scale: float


@dataclass
class Drawn:
    """What a group left.

    Args:
        buffer: its rows; states and texts of what is still to be answered.
        empty: index of the text of guided runs' other half.
        guided: to be answered away from the target.
        times: first and last time of the run.
    """

    buffer: ReplayBuffer
    empty: int | None = None
    guided: list[Guided] = field(default_factory=list)
    times: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def absorb(self, other: Drawn) -> None:
        """Append what another group left."""
        moved = self.buffer.absorb(other.buffer)
        if self.empty is None and other.empty is not None:
            self.empty = moved.text(other.empty)
        self.guided += [Guided(moved.entry(one.entry), one.scale) for one in other.guided]
        self.times += other.times


class Rollout:
    """What is known of a pipe while its groups are drawn.

    Args:
        recorder: holds the pipeline.
        layout: how it calls its denoiser.
        texts: the targets' conditioning, by prompt.
        dtype: in which states and predictions are kept.
    """

    def __init__(
        self,
        recorder: Recorder,
        layout: CallSignature,
        texts: dict[str, RowInputs],
        dtype: torch.dtype,
    ) -> None:
        self.recorder, self.layout, self.texts = recorder, layout, texts
        self.dtype, self.names = dtype, layout.texts
        self.time = timestep_name(recorder.model)

    def nothing(self) -> Drawn:
        """What is left before anything is drawn."""
        return Drawn(ReplayBuffer(self.dtype, TimestepConvention(self.time), self.layout.listed))

    def group(self, runs: Sequence[Run], steps: int, number: int) -> Drawn:
        """Draw a group of prompts, as many at once as fit the memory.

        Args:
            runs: its prompts.
            steps: of its run.
            number: of the group, which its noise depends on.
        """
        recorder = self.recorder
        first = recorder.seed + recorder.group * number
        kept = _Group(self, number)

        def draw(part: Sequence[int]) -> _Part:
            return kept.draw([runs[i] for i in part], steps, first + part[0])

        kept.keep(recorder.micro.map(draw, range(len(runs))))
        return kept.drawn


class _Ask(NamedTuple):
    """What a call asked about one half of a guided step, or all of a call without guidance.

    Args:
        state: what the denoiser was given besides the text, on the CPU.
        texts: the text, on the CPU; None: the prompts' own.
        prediction: the answer, on the CPU.
    """

    state: RowInputs
    texts: RowInputs | None
    prediction: Tensor


@dataclass
class _Part:
    """What was seen while some prompts of a group were drawn together.

    Args:
        runs: these prompts.
        own: their own texts.
        calls: of the denoiser.
        state: the last that was kept.
        ids: indices of its rows in the buffer.
    """

    runs: Sequence[Run]
    own: RowInputs
    calls: list[list[_Ask]] = field(default_factory=list)
    state: RowInputs | None = None
    ids: list[int] = field(default_factory=list)


class _Group:
    """A group while it is drawn; its rows are in the order in which all at once would come."""

    def __init__(self, drawing: Rollout, number: int) -> None:
        self.recorder, self.layout, self.texts = drawing.recorder, drawing.layout, drawing.texts
        self.names, self.time = drawing.names, drawing.time
        self.number, self.drawn = number, drawing.nothing()
        self.buffer = self.drawn.buffer

    def draw(self, runs: Sequence[Run], steps: int, seed: int) -> _Part:
        """Draw some of its prompts together."""
        prompts = [prompt for prompt, _ in runs]
        own = self.recorder.first_call(prompts).inputs
        part = _Part(runs, {name: own.get(name) for name in self.names})

        def on_call(call: Call) -> None:
            part.calls.append(self._asked(call, part))

        self.recorder.run(prompts, on_call, seed, num_inference_steps=steps)
        return part

    def _asked(self, call: Call, part: _Part) -> list[_Ask]:
        assert call.prediction is not None  # only a stopped call has none
        state, constants = self._split(call.inputs, len(call.prediction))
        self.buffer.keep_constants(constants)
        state = {name: to_cpu(value) for name, value in state.items()}
        prediction, found = call.prediction.cpu(), []
        for start in range(0, len(prediction), len(part.runs)):
            block = slice(start, start + len(part.runs))
            given = {name: call.inputs.get(name) for name in self.names}
            texts = {name: v if v is None else v[block] for name, v in given.items()}
            is_own = all(nearly_same(texts[name], part.own[name]) for name in self.names)
            found.append(
                _Ask(
                    {name: value[block] for name, value in state.items()},
                    None if is_own else {name: to_cpu(value) for name, value in texts.items()},
                    prediction[block],
                )
            )
        return found

    def keep(self, parts: Sequence[_Part]) -> None:
        """Put what was seen into the buffer, call by call."""
        calls = parts[0].calls
        if not calls:  # all of a short run's steps belong to another denoiser
            return
        first, last = (call[0].state[self.time][0] for call in (calls[0], calls[-1]))
        self.drawn.times.append((first, last))
        for i, together in enumerate(zip(*(part.calls for part in parts), strict=True)):
            # So that the empty prompt is kept at other steps in each group.
            is_kept = (self.number + i) % OTHER_EVERY == 0
            for half in zip(*together, strict=True):
                for part, ask in zip(parts, half, strict=True):
                    self._keep(part, ask, is_kept)

    def _keep(self, part: _Part, ask: _Ask, is_kept: bool) -> None:
        if ask.texts is not None and self.drawn.empty is None:
            self.drawn.empty = self._other(ask.texts, 0)
        # Both halves of a guided step share x_t: keep it once.
        before = part.state
        if before is None or not all(same(before[n], v) for n, v in ask.state.items()):
            part.state, part.ids = ask.state, self._states(ask.state, len(part.runs))
        if ask.texts is None or is_kept:
            self._rows(part, ask)

    def _split(self, inputs: dict[str, Any], rows: int) -> tuple[RowInputs, dict[str, Any]]:
        """What besides the text belongs to a row, batched, and what is the same for all."""
        state: RowInputs = {}
        constants: dict[str, Any] = {}
        for name, value in inputs.items():
            if name in self.names:
                continue
            if name == self.time and value.dim() == 0:
                state[name] = value.expand(rows).clone()
            elif name in self.layout.rows:
                state[name] = value
            else:
                constants[name] = to_cpu(value)
        return state, constants

    def _states(self, key: RowInputs, size: int) -> list[int]:
        return [self.buffer.add_state({n: v[i] for n, v in key.items()}) for i in range(size)]

    def _other(self, texts: RowInputs, i: int) -> int:
        """Index of the conditioning of a run's other half: the empty or the negative prompt."""
        row = entry(texts, self.names, i)
        sums = [value.cpu().double().sum().item() for value in row.values() if value is not None]
        return self.buffer.add_text(f"\0{','.join(f'{value:.9g}' for value in sums)}", row)

    def _own(self, prompt: str, texts: RowInputs, i: int) -> int:
        return self.buffer.add_text(prompt, entry(texts, self.names, i))

    def _target(self, pair: Pair) -> int:
        return self.buffer.add_text(pair.target, self.texts[pair.target])

    def _rows(self, part: _Part, ask: _Ask) -> None:
        """Rows of one call: what was asked for, and what its target is to get."""
        for i, (prompt, pair) in enumerate(part.runs):
            state, answer = part.ids[i], self.buffer.add_prediction(ask.prediction[i])
            if ask.texts is not None:
                self.buffer.add_row("retain", state, self._other(ask.texts, i), answer)
            elif pair is None:
                self.buffer.add_row("retain", state, self._own(prompt, part.own, i), answer)
            elif pair.guidance is not None:
                asked = Entry(state, self._target(pair), answer, pair.concept)
                self.drawn.guided.append(Guided(asked, pair.guidance))
            else:
                self.buffer.add_row("retain", state, self._own(prompt, part.own, i), answer)
                text = self._target(pair)
                self.buffer.add_row("unlearn", state, text, answer, pair.concept)
