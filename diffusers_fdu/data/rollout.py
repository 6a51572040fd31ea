"""One group of prompts, drawn by the frozen pipeline under hooks, as a buffer of its own.

A guided pipeline asks its denoiser about each x_t twice, in one call or in two: a *half* has the
prompts' own conditioning and answers for the anchor, the other half that of the empty (or
negative) prompt, and is kept as something to retain. Each has one row for each prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..pipelines.call_signature import CallSignature
from ..pipelines.denoiser import TimestepConvention, timestep_name
from ..pipelines.recorder import Call, Recorder, select_row
from ..utils.nested import RowInputs, nearly_same, same, to_cpu
from .concepts import Pair
from .replay_buffer import Entry, ReplayBuffer

Run = tuple[str, Pair | None]
"""A prompt to draw, and the pair that it belongs to; None if it is to be retained."""

OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt


@dataclass
class Recording:
    """What one group of prompts left, or several together.

    `guided` are states that negative guidance is to answer, each with its scale.
    """

    buffer: ReplayBuffer
    unconditional: str | None = None  # what the buffer calls the text of guided runs' other half
    guided: list[tuple[Entry, float]] = field(default_factory=list)
    times: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # first and last of each run

    def absorb(self, other: Self) -> None:
        """Append what another group left."""
        renumbered = self.buffer.absorb(other.buffer)
        self.unconditional = self.unconditional or other.unconditional
        self.guided += [(renumbered(entry), scale) for entry, scale in other.guided]
        self.times += other.times


class _Half(NamedTuple):
    """What one half was asked and answered, on the CPU; no texts mean the prompts' own."""

    state: RowInputs
    texts: RowInputs | None
    predictions: Tensor


@dataclass
class _Part:
    """Prompts that were drawn together, their own texts, and the halves of every call."""

    runs: Sequence[Run]
    texts: RowInputs
    calls: list[list[_Half]] = field(default_factory=list)
    state: RowInputs | None = None  # the last that the buffer got
    state_ids: list[int] = field(default_factory=list)  # of its rows


class Rollout:
    """Draws groups of prompts; `target_texts` are the conditioning of the targets' prompts."""

    def __init__(
        self,
        recorder: Recorder,
        signature: CallSignature,
        target_texts: dict[str, RowInputs],
        dtype: torch.dtype,
    ) -> None:
        self.recorder, self.target_texts, self.dtype = recorder, target_texts, dtype
        self.signature, self.names = signature, signature.texts
        self.time = timestep_name(recorder.model)

    def empty_recording(self) -> Recording:
        """What is left before anything is drawn."""
        clock = TimestepConvention(self.time)
        return Recording(ReplayBuffer(self.dtype, clock, self.signature.listed))

    def group(self, runs: Sequence[Run], steps: int, number: int) -> Recording:
        """Draw a group in so many steps, as many prompts at once as fit the memory.

        What is recorded does not depend on how many fit: the noise is that of the group's number
        and a prompt's place in it, and rows come as all prompts at once would give them.
        """
        recorder, recording = self.recorder, self.empty_recording()
        first_seed = recorder.seed + recorder.group * number

        def draw(places: Sequence[int]) -> _Part:
            part_runs = [runs[i] for i in places]
            return self._draw(part_runs, steps, first_seed + places[0], recording.buffer)

        parts = recorder.micro.map(draw, range(len(runs)))
        calls = parts[0].calls
        if not calls:  # all of a short run's steps belong to another denoiser
            return recording
        first, last = (call[0].state[self.time][0] for call in (calls[0], calls[-1]))
        recording.times.append((first, last))
        for i, part_calls in enumerate(zip(*(part.calls for part in parts), strict=True)):
            # The group's number is added so that groups keep the empty prompt at other steps.
            keeps_other = (number + i) % OTHER_EVERY == 0
            for halves in zip(*part_calls, strict=True):
                for part, half in zip(parts, halves, strict=True):
                    self._keep(recording, part, half, keeps_other)
        return recording

    def _draw(self, runs: Sequence[Run], steps: int, seed: int, buffer: ReplayBuffer) -> _Part:
        prompts = [prompt for prompt, _ in runs]
        inputs = self.recorder.first_call(prompts).inputs
        part = _Part(runs, {name: inputs.get(name) for name in self.names})

        def on_call(call: Call) -> None:
            part.calls.append(self._split(call, part, buffer))

        self.recorder.run(prompts, on_call, seed, num_inference_steps=steps)
        return part

    def _split(self, call: Call, part: _Part, buffer: ReplayBuffer) -> list[_Half]:
        """The halves of a call; the buffer gets what is the same for all rows."""
        assert call.prediction is not None  # only a stopped call has none
        rows, size = len(call.prediction), len(part.runs)
        state: RowInputs = {}
        for name in call.inputs:
            if name in self.names:
                continue
            value = to_cpu(call.inputs[name])
            if name == self.time and value.dim() == 0:
                state[name] = value.expand(rows).clone()
            elif name in self.signature.rows:
                state[name] = value
            else:
                buffer.keep_constants({name: value})
        halves = []
        for start in range(0, rows, size):
            block = slice(start, start + size)
            texts = {name: call.inputs.get(name) for name in self.names}
            texts = {name: v if v is None else v[block] for name, v in texts.items()}
            is_own = all(nearly_same(texts[name], part.texts[name]) for name in self.names)
            half_state = {name: value[block] for name, value in state.items()}
            predictions = call.prediction[block].cpu()
            halves.append(_Half(half_state, None if is_own else to_cpu(texts), predictions))
        return halves

    def _keep(self, recording: Recording, part: _Part, half: _Half, keeps_other: bool) -> None:
        buffer = recording.buffer
        if half.texts is not None and recording.unconditional is None:
            recording.unconditional, row = self._unconditional(half.texts, 0)
            buffer.add_text(recording.unconditional, row)  # needed even if no row has it
        # Both halves of a guided step share x_t, which is kept once.
        if part.state is None or not all(same(part.state[n], v) for n, v in half.state.items()):
            part.state = half.state
            rows = [select_row(half.state, list(half.state), i) for i in range(len(part.runs))]
            part.state_ids = [buffer.add_state(row) for row in rows]
        if half.texts is None or keeps_other:
            self._add_rows(recording, part, half)

    def _add_rows(self, recording: Recording, part: _Part, half: _Half) -> None:
        """Rows of what was asked, and of what the targets are to answer in the same states."""
        buffer = recording.buffer
        for i, (prompt, pair) in enumerate(part.runs):
            state, prediction = part.state_ids[i], buffer.add_prediction(half.predictions[i])
            if half.texts is not None:
                name, row = self._unconditional(half.texts, i)
                buffer.add_row("retain", state, buffer.add_text(name, row), prediction)
                continue
            if pair is None or pair.guidance is None:
                text = buffer.add_text(prompt, select_row(part.texts, self.names, i))
                buffer.add_row("retain", state, text, prediction)
            if pair is not None:
                text = buffer.add_text(pair.target, self.target_texts[pair.target])
                if pair.guidance is None:
                    buffer.add_row("unlearn", state, text, prediction, pair.concept)
                else:
                    entry = Entry(state, text, prediction, pair.concept)
                    recording.guided.append((entry, pair.guidance))

    def _unconditional(self, texts: RowInputs, i: int) -> tuple[str, RowInputs]:
        """A row of the other half's text, and a name for it."""
        row = select_row(texts, self.names, i)
        # Nobody says what its prompt was, so sums name it; no prompt begins with this character.
        sums = [value.cpu().double().sum().item() for value in row.values() if value is not None]
        return f"\0{','.join(f'{value:.9g}' for value in sums)}", row
