"""Record what a frozen pipeline does: its own denoiser calls, by hook, while it draws.

The pipeline is the source of truth for how its denoiser is called. Its calls on the anchor's
prompts are recorded as keyword arguments; those that depend on the text are found by comparing
two prompts, and swapped for the target's. So nothing about prompt embeddings, added conditions
or guidance is rebuilt here, and the teacher costs nothing once training starts.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import RETAIN_PER_TRAJECTORY
from ..pipelines.denoiser import find_timestep_convention
from ..pipelines.recorder import Recorder, preserve_pipeline_state
from ..utils.distributed import Processes
from ..utils.nested import chunks
from .concepts import Pair
from .replay_buffer import Entry, Halves, ReplayBuffer
from .rollout import Rollout, Run
from .teacher import ask, negative_guidance

GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly over [0, 1) however many there are
SQUARE = 2**0.5 - 1  # likewise, and independent of the multiples of the other

StopRecording = Callable[[ReplayBuffer, Sequence[Halves]], bool]
"""Called with what was recorded and each concept's rows; returns whether that is enough."""


class Stages(NamedTuple):
    """Pictures of each concept after which recording may stop, and what says that it is enough."""

    pictures: Sequence[int]
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

    Each anchor is drawn once, and its states are kept with the target's conditioning ("unlearn")
    and with its own ("retain"). With negative guidance the target itself is drawn, and kept as
    "unlearn" alone. Prompts of `retain` are drawn once each and kept with their own conditioning.
    Processes share the work, and each gets the same buffer as one alone would. The pipe's
    scheduler, progress-bar settings, hooks and the global RNG are left as they were.

    States and predictions are kept in `dtype`; with `keep_texts` so are the texts of all prompts,
    drawn or not, for the closed form. `stages` say where recording may stop.

    Raises:
        ValueError: for a prompt that the pipe cuts, or if target and anchor look alike to it.
    """
    if not pairs:
        raise ValueError("no prompts to record")
    recorder.check_lengths([*(p.drawn for p in pairs), *retain, *(p.target for p in pairs)])
    groups = chunks([(pair.drawn, pair) for pair in pairs], recorder.group)
    groups += chunks([(prompt, None) for prompt in retain], recorder.group)
    with preserve_pipeline_state(recorder.pipe):
        session = _Session(recorder, pairs, dtype, processes or Processes())
        session.draw(groups, progress, stages or Stages([len(pairs)]))
        session.answer_guided()
        if keep_texts:
            session.keep_texts(pairs, retain)
    if not session.buffer.count("unlearn"):
        raise ValueError(
            f"{type(recorder.pipe).__name__} never called its denoiser with the conditioning of "
            "the prompts alone: this pipeline cannot be recorded"
        )
    return session.buffer


def _plan_stages(groups: Sequence[Sequence[Run]], pictures: Sequence[int]) -> list[list[int]]:
    """Numbers of the groups that each stage draws."""
    limits = (*pictures[:-1], inf)
    drawn: Counter[int | None] = Counter()
    plan: list[list[int]] = [[] for _ in limits]
    for number, group in enumerate(groups):
        pair = group[0][1]
        concept = None if pair is None else pair.concept
        share = drawn[concept] / (RETAIN_PER_TRAJECTORY if pair is None else 1)
        drawn[concept] += len(group)
        plan[next(i for i, limit in enumerate(limits) if share < limit)].append(number)
    return [numbers for numbers in plan if numbers]


def _shifted(scheduler: Any, steps: int, share: float) -> Any:
    """The scheduler, its timesteps moved by a share of their distance where it can do that."""
    config: Any = getattr(scheduler, "config", {})
    if "steps_offset" not in config or "timestep_spacing" not in config:
        return scheduler
    # With one more step, so that every kind of scheduler stays inside the training range.
    offset = int(share * (config.num_train_timesteps // (steps + 1)))
    return type(scheduler).from_config(config, timestep_spacing="leading", steps_offset=offset)


class _Session:
    """What is recorded so far; `ends` are the numbers of rows to unlearn after each group."""

    def __init__(
        self, recorder: Recorder, pairs: Sequence[Pair], dtype: torch.dtype, processes: Processes
    ) -> None:
        self.recorder, self.processes = recorder, processes
        signature = recorder.find_signature(pairs[0].target, pairs[0].anchor)
        self.names = signature.texts
        texts = recorder.conditioning([pair.target for pair in pairs], self.names)
        self.rollout = Rollout(recorder, signature, texts, dtype)
        self.recording = self.rollout.empty_recording()
        self.buffer = self.recording.buffer
        self.concepts = 1 + max(pair.concept for pair in pairs)
        self.ends: list[int] = []

    def draw(self, groups: Sequence[Sequence[Run]], progress: bool, stages: Stages) -> None:
        """Run the pipe on all prompts, or on as many as are enough."""
        plan = _plan_stages(groups, stages.pictures)
        scheduler = getattr(self.recorder.pipe, "scheduler", None)
        config: Any = getattr(scheduler, "config", {})
        length = config.get("num_train_timesteps", 1000)
        with tqdm(total=0, desc="record", disable=not progress, unit="image") as bar:
            for stage, numbers in enumerate(plan):
                bar.total += sum(len(groups[i]) for i in self.processes.share(numbers))
                self._draw_groups(numbers, groups, scheduler, bar)
                self.buffer.clock = find_timestep_convention(
                    self.rollout.time, length, self.recording.times
                )
                if stage + 1 < len(plan) and self._is_enough(stages.is_enough):
                    break

    def _draw_groups(
        self, numbers: Sequence[int], groups: Sequence[Sequence[Run]], scheduler: Any, bar: Any
    ) -> None:
        """Draw these groups, each process its own, and keep what all have seen."""
        recorder, recordings = self.recorder, []
        # Steps and shifts are low-discrepancy sequences in the group's number, so that few groups
        # already cover both evenly, whichever stage or process draws them.
        fewest, most = (recorder.steps + 1) // 2, recorder.steps
        for i in self.processes.share(numbers):
            steps = fewest + int(i * GOLDEN % 1 * (most - fewest + 1))
            if scheduler is not None:  # half the runs visit the timesteps of the pipe itself
                share = i * SQUARE % 1
                recorder.pipe.scheduler = _shifted(scheduler, steps, share) if i % 2 else scheduler
            recordings.append(self.rollout.group(groups[i], steps, i))
            bar.update(len(groups[i]))
            nbytes = sum(r.buffer.nbytes for r in recordings) + self.buffer.nbytes
            bar.set_postfix(MB=f"{nbytes / 1e6:.1f}")
        for recording in self.processes.gather(recordings):
            self.recording.absorb(recording)
            self.ends.append(self.buffer.count("unlearn"))

    def _is_enough(self, is_enough: StopRecording | None) -> bool:
        if is_enough is None:
            return False
        halves: list[Halves] = []
        entries = self.buffer.entries("unlearn")
        for concept in range(self.concepts):
            rows = [i for i, entry in enumerate(entries) if entry.concept == concept]
            groups = sorted({bisect_right(self.ends, i) for i in rows})
            if len(groups) < 2:  # one group has no halves, and none is not answered yet
                return False
            end = self.ends[groups[len(groups) // 2] - 1]
            first, second = [i for i in rows if i < end], [i for i in rows if i >= end]
            halves.append(([("unlearn", i) for i in first], [("unlearn", i) for i in second]))
        # Rounding may differ between processes, so the first decides.
        return self.processes.gather([is_enough(self.buffer, halves)])[0]

    def answer_guided(self) -> None:
        """Ask the frozen model for what negative guidance needs and the runs did not tell."""
        if not self.recording.guided:
            return
        name = self.recording.unconditional
        text = None if name is None else self.buffer.text_of(name)
        # Runs without guidance never ask for it, and a negative prompt is not empty.
        if text is None or self.recorder.has_negative:
            text = self.buffer.add_text("", self.recorder.conditioning([""], self.names)[""])
        entries = [entry for entry, _ in self.recording.guided]
        empty = self._ask([entry._replace(text=text) for entry in entries])
        conditional = self._ask(entries)
        for i, (entry, scale) in enumerate(self.recording.guided):
            teacher = negative_guidance(conditional[i], empty[i], scale)
            prediction = self.buffer.add_prediction(teacher)
            self.buffer.add_row("unlearn", entry.state, entry.text, prediction, entry.concept)

    def keep_texts(self, pairs: Sequence[Pair], retain: Sequence[str]) -> None:
        """Keep the texts of all prompts for the closed form, those that were not drawn, too."""
        pairs = [pair for pair in pairs if pair.guidance is None]
        anchors = [pair.anchor for pair in pairs]
        prompts = list(dict.fromkeys([*(pair.target for pair in pairs), *anchors, *retain]))
        texts = self.rollout.target_texts
        missing = [p for p in prompts if self.buffer.text_of(p) is None and p not in texts]
        texts = texts | self.recorder.conditioning(missing, self.names)
        ids = {}
        for prompt in prompts:
            index = self.buffer.text_of(prompt)
            ids[prompt] = self.buffer.add_text(prompt, texts[prompt]) if index is None else index
        self.buffer.pairs = list(dict.fromkeys((ids[p.target], ids[p.anchor]) for p in pairs))
        recorded = [entry.text for entry in self.buffer.entries("retain")]
        planned = [ids[prompt] for prompt in (*anchors, *retain)]
        self.buffer.kept_texts = list(dict.fromkeys([*recorded, *planned]))

    def _ask(self, entries: list[Entry]) -> Tensor:
        """Predictions for entries, of which each process asks its own part."""
        own, size = self.processes.share(entries), 2 * self.recorder.micro.size
        predictions = [ask(self.recorder.model, self.buffer, own, size)] if own else []
        return torch.cat(self.processes.gather(predictions))
