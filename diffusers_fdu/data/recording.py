"""Record what a frozen pipeline does: its own denoiser calls, by hook, while it draws.

The pipeline is the source of truth for how its denoiser is called. Its calls on the anchor's
prompts are recorded as keyword arguments; those that depend on the text are found by comparing
two prompts, and swapped for the target's. So nothing about prompt embeddings, added conditions
or guidance is rebuilt here, and the teacher costs nothing once training starts.

In a guided run the rows that carry the prompt's own conditioning answer for the anchor; the
others answer for the empty (or negative) prompt and are kept as something to retain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..pipelines.recorder import Recorder, preserve_pipeline_state
from ..pipelines.timestep_convention import find_timestep_convention
from ..utils.distributed import Processes
from ..utils.nested import chunks
from .concepts import Pair
from .replay_buffer import ReplayBuffer
from .rollout import Rollout, Run
from .rows import Entry, Half, Row
from .teacher import ask, guided

GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1) however many there are
SQUARE = 2**0.5 - 1  # likewise, and independent of the multiples of the other


StopRecording = Callable[[ReplayBuffer, Sequence[Half]], bool]


@dataclass(frozen=True)
class Stages:
    """When recording may stop.

    Args:
        pictures: of each concept; it may stop after each of these numbers.
        retained: pictures to retain for each of them.
        is_enough: called after a stage with what was recorded and the rows of each concept's two
            halves; None: all is recorded.
    """

    pictures: Sequence[int]
    retained: int
    is_enough: StopRecording | None = None


def record(
    recorder: Recorder,
    pairs: Sequence[Pair],
    retain: Sequence[str],
    dtype: torch.dtype = torch.float16,
    progress: bool = True,
    processes: Processes | None = None,
    stages: Stages | None = None,
    keep_texts: bool = False,
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
        processes: share the work; each gets the whole buffer, the same as one alone would.
        stages: stop early; None: record everything.
        keep_texts: keep the texts of all prompts for the closed form, those not drawn, too.

    Returns:
        The buffer. The pipe's scheduler, progress-bar settings, hooks and the global RNG are
        as before, also after an exception.

    Raises:
        ValueError: if a prompt is longer than the tokenizer takes, or if target and anchor get
            the same conditioning.
    """
    if not pairs:
        raise ValueError("no prompts to record")
    runs: list[Run] = [(pair.drawn, pair) for pair in pairs]
    runs += [(prompt, None) for prompt in retain]
    prompts = [prompt for prompt, _ in runs] + [pair.target for pair in pairs]
    recorder.check_lengths(prompts)
    with preserve_pipeline_state(recorder.pipe):
        recording = _Recording(recorder, pairs, dtype, processes or Processes())
        recording.draw(runs, progress, stages)
        recording.answer()
        if keep_texts:
            recording.plan(pairs, retain)
    if not recording.buffer.count("unlearn"):
        raise ValueError(
            f"{type(recorder.pipe).__name__} never called its denoiser with the conditioning of "
            "the prompts alone: this pipeline cannot be recorded"
        )
    return recording.buffer


def _staged(groups: Sequence[Sequence[Run]], stages: Stages | None) -> list[list[int]]:
    """Numbers of the groups that each stage draws."""
    if stages is None:
        return [list(range(len(groups)))]
    seen: dict[int, int] = {}
    plan: list[list[int]] = [[] for _ in stages.pictures]
    for number, group in enumerate(groups):
        pair = group[0][1]
        kind = -1 if pair is None else pair.concept
        pictures = seen.get(kind, 0) / (stages.retained if pair is None else 1)
        seen[kind] = seen.get(kind, 0) + len(group)
        stage = next(i for i, most in enumerate((*stages.pictures[:-1], inf)) if pictures < most)
        plan[stage].append(number)
    return [own for own in plan if own]


def _by_kind(runs: list[Run]) -> list[list[Run]]:
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
        self, recorder: Recorder, pairs: Sequence[Pair], dtype: torch.dtype, processes: Processes
    ) -> None:
        self.recorder, self.processes = recorder, processes
        layout = recorder.layout(pairs[0].target, pairs[0].anchor)
        self.names = layout.texts
        texts = recorder.conditioning([pair.target for pair in pairs], self.names)
        self.drawing = Rollout(recorder, layout, texts, dtype)
        self.drawn = self.drawing.nothing()
        self.buffer = self.drawn.buffer
        self.concepts = 1 + max(pair.concept for pair in pairs)
        self.parts: dict[int, list[list[Row]]] = {}  # of each concept, the rows of each group

    def draw(self, runs: list[Run], progress: bool, stages: Stages | None) -> None:
        """Run the pipe on all prompts, or on as many as are enough."""
        recorder = self.recorder
        groups = [part for kind in _by_kind(runs) for part in chunks(kind, recorder.group)]
        plan = _staged(groups, stages)
        scheduler = getattr(recorder.pipe, "scheduler", None)
        with tqdm(total=0, desc="record", disable=not progress, unit="image") as bar:
            for number, own in enumerate(plan):
                bar.total += sum(len(groups[i]) for i in self.processes.share(own))
                self._draw_groups(own, groups, scheduler, bar)
                config: Any = getattr(scheduler, "config", {})
                length = config.get("num_train_timesteps", 1000)
                self.buffer.clock = find_timestep_convention(
                    self.drawing.time, length, self.drawn.times
                )
                if number + 1 < len(plan) and self._is_enough(stages):
                    break

    def _draw_groups(
        self, numbers: Sequence[int], groups: Sequence[Sequence[Run]], scheduler: Any, bar: Any
    ) -> None:
        """Draw these groups, each process its own, and keep what all have seen."""
        recorder, found = self.recorder, []
        low, high = (recorder.steps + 1) // 2, recorder.steps
        for i in self.processes.share(numbers):
            steps = low + int(i * GOLDEN % 1 * (high - low + 1))
            if scheduler is not None:  # half the runs visit the timesteps of the pipe itself
                share = i * SQUARE % 1
                recorder.pipe.scheduler = _shifted(scheduler, steps, share) if i % 2 else scheduler
            found.append(self.drawing.group(groups[i], steps, i))
            bar.update(len(groups[i]))
            kept = sum(one.buffer.nbytes for one in found) + self.buffer.nbytes
            bar.set_postfix(MB=f"{kept / 1e6:.1f}")
        for one in self.processes.gather(found):
            for concept in {entry.concept for entry in one.buffer.entries("unlearn")}:
                first = self.buffer.count("unlearn")
                rows: list[Row] = [
                    ("unlearn", first + k)
                    for k, entry in enumerate(one.buffer.entries("unlearn"))
                    if entry.concept == concept
                ]
                self.parts.setdefault(concept, []).append(rows)
            self.drawn.absorb(one)

    def _is_enough(self, stages: Stages | None) -> bool:
        if stages is None or stages.is_enough is None or len(self.parts) < self.concepts:
            return False  # some concept's rows are not answered yet
        if any(len(parts) < 2 for parts in self.parts.values()):
            return False
        halves: list[Half] = []
        for parts in self.parts.values():
            middle = len(parts) // 2
            halves.append((sum(parts[:middle], []), sum(parts[middle:], [])))
        # Rounding may differ between processes.
        found = stages.is_enough(self.buffer, halves)
        return self.processes.gather([found])[0]

    def answer(self) -> None:
        """Ask the frozen model what the runs themselves did not tell."""
        if self.drawn.guided:
            entries = [entry for entry, _ in self.drawn.guided]
            empty = self._asked([entry._replace(text=self._empty_text()) for entry in entries])
            conditional = self._asked(entries)
            for (entry, scale), with_text, without in zip(
                self.drawn.guided, conditional, empty, strict=True
            ):
                answer = self.buffer.add_prediction(guided(with_text, without, scale))
                self.buffer.add_row("unlearn", entry.state, entry.text, answer, entry.concept)

    def plan(self, pairs: Sequence[Pair], retain: Sequence[str]) -> None:
        """Keep the texts of all prompts for the closed form, those that were not drawn, too."""
        named = [pair for pair in pairs if pair.guidance is None]
        anchors = [pair.anchor for pair in named]
        prompts = list(dict.fromkeys([*(pair.target for pair in named), *anchors, *retain]))
        known = {prompt: self.buffer.text_of(prompt) for prompt in prompts}
        missing = [prompt for prompt, text in known.items() if text is None]
        leaves = {prompt: self.drawing.texts.get(prompt) for prompt in missing}
        asked = [prompt for prompt, own in leaves.items() if own is None]
        leaves |= self.recorder.conditioning(asked, self.names)
        ids = {p: self.buffer.add_text(p, own) for p, own in leaves.items() if own is not None}
        ids |= {prompt: text for prompt, text in known.items() if text is not None}
        self.buffer.pairs = list(dict.fromkeys((ids[p.target], ids[p.anchor]) for p in named))
        recorded = [entry.text for entry in self.buffer.entries("retain")]
        planned = [ids[prompt] for prompt in (*anchors, *retain)]
        self.buffer.kept_texts = list(dict.fromkeys([*recorded, *planned]))

    def _empty_text(self) -> int:
        # Runs without guidance never ask for it, and a negative prompt is not empty.
        if self.drawn.empty is None or self.recorder.has_negative:
            leaves = self.recorder.conditioning([""], self.names)[""]
            return self.buffer.add_text("", leaves)
        return self.drawn.empty

    def _asked(self, entries: list[Entry]) -> Tensor:
        """Answers to these, each process asking for its own part."""
        own = self.processes.share(entries)
        answers = (
            [ask(self.recorder.model, self.buffer, own, 2 * self.recorder.micro.size)]
            if own
            else []
        )
        found = self.processes.gather(answers)
        return torch.cat(found) if found else torch.empty(0)
