"""Record what a frozen pipeline does: its own denoiser calls, by hook, while it draws.

The pipeline is the source of truth for how its denoiser is called. Its calls on the anchor's
prompts are recorded as keyword arguments; those that depend on the text are found by comparing
two prompts, and swapped for the target's. So nothing about prompt embeddings, added conditions
or guidance is rebuilt here, and the teacher costs nothing once training starts.

In a guided run the rows that carry the prompt's own conditioning answer for the anchor; the
others answer for the empty (or negative) prompt and are kept as something to retain.

With `states="renoise"` the runs' last latents are noised anew, and the frozen model is asked
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .answers import ask, guided
from .clock import find_clock
from .concepts import Pair
from .denoiser import denoiser_names
from .drawing import OTHER_EVERY, Drawing, Guided, Run, States
from .processes import Processes
from .recorder import Recorder, untouched
from .renoise import COPIES, Clean, noised
from .replay import Entry, ReplayBuffer
from .values import chunks

GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1) however many there are
SQUARE = 2**0.5 - 1  # likewise, and independent of the multiples of the other


def record(
    recorder: Recorder,
    pairs: Sequence[Pair],
    retain: Sequence[str],
    dtype: torch.dtype = torch.float16,
    progress: bool = True,
    states: States = "trajectory",
    candidates: Sequence[str] = (),
    processes: Processes | None = None,
) -> ReplayBuffer:
    """Run the frozen pipeline on anchors and retained prompts, and keep what its denoiser did.

    Args:
        recorder: holds the pipeline.
        pairs: each anchor is drawn once, and its states are kept with the target's conditioning
            ("unlearn") and with its own ("retain"). With negative guidance the target itself is
            drawn, and kept as "unlearn" alone.
        retain: prompts drawn once each, kept with their own conditioning.
        dtype: in which states and predictions are kept.
        progress: show a progress bar.
        states: "trajectory": every x_t of the runs. "renoise": the runs' last latents, noised
            anew `COPIES` times.
        candidates: prompts whose conditioning is kept without any row, to mine among.
        processes: share the work; each gets the whole buffer, the same as one alone would.

    Returns:
        The buffer. The pipe's scheduler, progress-bar settings, hooks and the global RNG are
        as before, also after an exception.

    Raises:
        ValueError: if a prompt is longer than the tokenizer takes, if target and anchor get
            the same conditioning, or if the pipeline's latents cannot be noised anew.
    """
    if not pairs:
        raise ValueError("no prompts to record")
    runs: list[Run] = [(pair.drawn, pair) for pair in pairs]
    runs += [(prompt, None) for prompt in retain]
    prompts = [prompt for prompt, _ in runs] + [pair.target for pair in pairs]
    recorder.check_lengths([*prompts, *candidates])
    with untouched(recorder.pipe):
        recording = _Recording(recorder, pairs, dtype, states, processes or Processes())
        recording.draw(runs, progress)
        recording.answer()
        recording.offer(candidates)
    if not recording.buffer.count("unlearn"):
        raise ValueError(
            f"{type(recorder.pipe).__name__} never called its denoiser with the conditioning of "
            "the prompts alone: this pipeline cannot be recorded"
        )
    return recording.buffer


def _grouped(runs: list[Run]) -> list[list[Run]]:
    return [[r for r in runs if r[1] is not None], [r for r in runs if r[1] is None]]


def _shifted(scheduler: Any, steps: int, share: float) -> Any:
    """The scheduler, its timesteps moved by a share of their distance where it can do that."""
    config: Any = getattr(scheduler, "config", {})
    if "steps_offset" not in config or "timestep_spacing" not in config:
        return scheduler
    # With one more step, so that every kind of scheduler stays inside the training range.
    offset = int(share * (config.num_train_timesteps // (steps + 1)))
    return type(scheduler).from_config(config, timestep_spacing="leading", steps_offset=offset)


class _Recording:
    """What is known while the runs go on."""

    def __init__(
        self,
        recorder: Recorder,
        pairs: Sequence[Pair],
        dtype: torch.dtype,
        states: States,
        processes: Processes,
    ) -> None:
        self.recorder, self.states, self.processes = recorder, states, processes
        layout = recorder.layout(pairs[0].target, pairs[0].anchor)
        self.names = layout.texts
        texts = recorder.conditioning([pair.target for pair in pairs], self.names)
        self.drawing = Drawing(recorder, layout, texts, dtype, states)
        self.drawn = self.drawing.nothing()
        self.buffer = self.drawn.buffer

    def draw(self, runs: list[Run], progress: bool) -> None:
        """Run the pipe on all prompts, each process on its own batches."""
        recorder, processes = self.recorder, self.processes
        batches = [part for group in _grouped(runs) for part in chunks(group, recorder.batch)]
        scheduler = getattr(recorder.pipe, "scheduler", None)
        low, high = (recorder.steps + 1) // 2, recorder.steps
        own = processes.own(list(enumerate(batches)))
        total, found = sum(len(part) for _, part in own), []
        with tqdm(total=total, desc="record", disable=not progress, unit="image") as bar:
            for i, part in own:
                steps = low + int(i * GOLDEN % 1 * (high - low + 1))
                if self.states == "renoise":
                    steps = high  # the picture itself is wanted
                # Half the runs visit the timesteps that the pipe itself would.
                elif scheduler is not None and i % 2:
                    recorder.pipe.scheduler = _shifted(scheduler, steps, i * SQUARE % 1)
                elif scheduler is not None:
                    recorder.pipe.scheduler = scheduler
                found.append(self.drawing.batch(part, steps, i))
                bar.update(len(part))
                bar.set_postfix(MB=f"{sum(one.buffer.nbytes for one in found) / 1e6:.1f}")
        for one in processes.gather(found):
            self.drawn.absorb(one)
        config: Any = getattr(scheduler, "config", {})
        length = config.get("num_train_timesteps", 1000)
        self.buffer.clock = find_clock(self.drawing.time, length, self.drawn.times)

    def answer(self) -> None:
        """Ask the frozen model what the runs themselves did not tell."""
        self._noise_anew()
        if self.drawn.guided:
            entries = [entry for entry, _ in self.drawn.guided]
            empty = self._asked([entry._replace(text=self._empty_text()) for entry in entries])
            conditional = self._asked(entries)
            for (entry, scale), with_text, without in zip(
                self.drawn.guided, conditional, empty, strict=True
            ):
                answer = self.buffer.add_prediction(guided(with_text, without, scale))
                self.buffer.add_row("unlearn", entry.state, entry.text, answer, entry.concept)

    def offer(self, candidates: Sequence[str]) -> None:
        """Keep the conditioning of prompts among which to mine."""
        texts = self.recorder.conditioning(candidates, self.names)
        self.buffer.candidates = [self.buffer.add_text(*item) for item in texts.items()]

    def _noise_anew(self) -> None:
        if not self.drawn.clean:
            return
        scheduler = self.recorder.pipe.scheduler
        generator = torch.Generator().manual_seed(self.recorder.seed)
        name, clock = self.drawing.sample, self.buffer.clock
        # Of several denoisers each has its own part of the times.
        is_alone = len(denoiser_names(self.recorder.pipe)) == 1
        times = [clock.read(time).item() for ends in self.drawn.times for time in ends]
        span = None if is_alone else (min(times), max(times))
        rows: list[tuple[Clean | None, Entry]] = []
        for i in range(COPIES * len(self.drawn.clean)):
            clean = self.drawn.clean[i % len(self.drawn.clean)]
            state = noised(clean.state, name, scheduler, generator, clock, span)
            entry = Entry(self.buffer.add_state(state), clean.own, -1, clean.concept)
            if clean.guidance is not None:
                self.drawn.guided.append(Guided(entry, clean.guidance))
                continue
            rows.append((clean, entry))
            if self.drawn.empty is not None and i % OTHER_EVERY == 0:
                rows.append((None, entry._replace(text=self.drawn.empty)))
        for (owner, entry), prediction in zip(
            rows, self._asked([entry for _, entry in rows]), strict=True
        ):
            answer = self.buffer.add_prediction(prediction)
            self.buffer.add_row("retain", entry.state, entry.text, answer)
            if owner is not None and owner.target is not None:
                text, concept = owner.target, owner.concept
                self.buffer.add_row("unlearn", entry.state, text, answer, concept)

    def _empty_text(self) -> int:
        # Runs without guidance never ask for it, and a negative prompt is not empty.
        if self.drawn.empty is None or self.recorder.has_negative:
            leaves = self.recorder.conditioning([""], self.names)[""]
            return self.buffer.add_text("", leaves)
        return self.drawn.empty

    def _asked(self, entries: list[Entry]) -> Tensor:
        """Answers to these, each process asking for its own part."""
        own = self.processes.own(entries)
        answers = (
            [ask(self.recorder.model, self.buffer, own, 2 * self.recorder.batch)] if own else []
        )
        found = self.processes.gather(answers)
        return torch.cat(found) if found else torch.empty(0)
