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
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .answers import ask, guided
from .clock import Clock, find_clock
from .concepts import Pair
from .denoiser import sample_name, timestep_name
from .layout import close, same
from .recorder import BATCH, Call, Recorder, entry, untouched
from .renoise import COPIES, Clean, latents_like, noised
from .replay import Entry, Leaves, ReplayBuffer

States = Literal["trajectory", "renoise"]
Run = tuple[str, Pair | None]

OTHER_EVERY = 4  # one call in so many keeps the rows of the empty prompt, which is one prompt
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
        recording = _Recording(recorder, pairs, dtype, states)
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


def _chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


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
        self, recorder: Recorder, pairs: Sequence[Pair], dtype: torch.dtype, states: States
    ) -> None:
        self.recorder, self.states = recorder, states
        self.sample, self.time = sample_name(recorder.model), timestep_name(recorder.model)
        self.layout = recorder.layout(pairs[0].target, pairs[0].anchor)
        self.buffer = ReplayBuffer(dtype, Clock(self.time), self.layout.listed)
        self.names = self.layout.texts
        self.texts = recorder.conditioning([pair.target for pair in pairs], self.names)
        self.times: list[tuple[Tensor, Tensor]] = []  # first and last of each run
        self.empty: int | None = None  # index of the text of guided runs' other half
        self.guided: list[tuple[Entry, float]] = []  # to be answered away from the target
        self.clean: list[Clean] = []  # to be noised anew

    def draw(self, runs: list[Run], progress: bool) -> None:
        """Run the pipe on all prompts."""
        recorder = self.recorder
        batches = [part for group in _grouped(runs) for part in _chunks(group, BATCH)]
        scheduler = getattr(recorder.pipe, "scheduler", None)
        low, high = (recorder.steps + 1) // 2, recorder.steps
        with tqdm(total=len(runs), desc="record", disable=not progress, unit="image") as bar:
            for i, part in enumerate(batches):
                steps = low + int(i * GOLDEN % 1 * (high - low + 1))
                if self.states == "renoise":
                    steps = high  # the picture itself is wanted
                # Half the runs visit the timesteps that the pipe itself would.
                elif scheduler is not None and i % 2:
                    recorder.pipe.scheduler = _shifted(scheduler, steps, i * SQUARE % 1)
                elif scheduler is not None:
                    recorder.pipe.scheduler = scheduler
                self._batch(part, steps, i)
                bar.update(len(part))
                bar.set_postfix(MB=f"{self.buffer.nbytes / 1e6:.1f}")
        config: Any = getattr(scheduler, "config", {})
        length = config.get("num_train_timesteps", 1000)
        self.buffer.clock = find_clock(self.time, length, self.times)

    def _batch(self, runs: list[Run], steps: int, number: int) -> None:
        prompts = [prompt for prompt, _ in runs]
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
            times.append(state[self.time][0])
            self.buffer.constants.update(constants)
            for start in range(0, len(prediction), len(runs)):
                block = slice(start, start + len(runs))
                key = {name: value[block] for name, value in state.items()}
                texts = {n: v if (v := inputs.get(n)) is None else v[block] for n in self.names}
                is_own = all(close(texts[name], own.get(name)) for name in self.names)
                if not is_own and self.empty is None:
                    self.empty = self._other(texts, 0)
                if self.states == "renoise":
                    if is_own and not first:
                        first.update(key=key, texts=texts)
                    continue
                # Both halves of a guided step share x_t: keep it once.
                if not latest or not all(same(latest["key"][n], v) for n, v in key.items()):
                    latest.update(key=key, ids=self._states(key, len(runs)))
                if is_own or is_kept:
                    self._rows(runs, latest["ids"], texts, prediction[block], is_own)

        seed = self.recorder.seed + BATCH * number
        latents = self.recorder.run(prompts, on_call, seed, num_inference_steps=steps)
        self.times.append((times[0], times[-1]))
        if first:
            name = self.sample
            key = {**first["key"], name: latents_like(latents, first["key"][name])}
            self._pictures(runs, key, first["texts"])

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
            elif same(value, self.buffer.constants.get(name, value)):
                constants[name] = value
            else:
                raise ValueError(
                    f"cannot record this pipeline: its denoiser's argument {name} changes from "
                    "call to call and does not have an entry for each prompt"
                )
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

    def _rows(
        self, runs: list[Run], ids: list[int], texts: Leaves, prediction: Tensor, is_own: bool
    ) -> None:
        """Rows of one call: what was asked for, and what its target is to get."""
        for i, (prompt, pair) in enumerate(runs):
            answer = self.buffer.add_prediction(prediction[i])
            if not is_own:
                self.buffer.add_row("retain", ids[i], self._other(texts, i), answer)
            elif pair is None:
                self.buffer.add_row("retain", ids[i], self._own(prompt, texts, i), answer)
            elif pair.guidance is not None:
                entry = Entry(ids[i], self._target(pair), answer, pair.concept)
                self.guided.append((entry, pair.guidance))
            else:
                self.buffer.add_row("retain", ids[i], self._own(prompt, texts, i), answer)
                text = self._target(pair)
                self.buffer.add_row("unlearn", ids[i], text, answer, pair.concept)

    def _pictures(self, runs: list[Run], key: Leaves, texts: Leaves) -> None:
        """Keep what was drawn, to be noised anew."""
        for i, (prompt, pair) in enumerate(runs):
            state = {name: value[i] for name, value in key.items()}
            own = self._own(prompt, texts, i)
            if pair is None:
                self.clean.append(Clean(state, own, None, 0, None))
            else:
                target = self._target(pair)
                self.clean.append(Clean(state, own, target, pair.concept, pair.guidance))

    def answer(self) -> None:
        """Ask the frozen model what the runs themselves did not tell."""
        self._noise_anew()
        if self.guided:
            entries = [entry for entry, _ in self.guided]
            empty = self._asked([entry._replace(text=self._empty_text()) for entry in entries])
            conditional = self._asked(entries)
            for (entry, scale), with_text, without in zip(
                self.guided, conditional, empty, strict=True
            ):
                answer = self.buffer.add_prediction(guided(with_text, without, scale))
                self.buffer.add_row("unlearn", entry.state, entry.text, answer, entry.concept)

    def offer(self, candidates: Sequence[str]) -> None:
        """Keep the conditioning of prompts among which to mine."""
        texts = self.recorder.conditioning(candidates, self.names)
        self.buffer.candidates = [self.buffer.add_text(*item) for item in texts.items()]

    def _noise_anew(self) -> None:
        if not self.clean:
            return
        scheduler = self.recorder.pipe.scheduler
        generator = torch.Generator().manual_seed(self.recorder.seed)
        rows: list[tuple[Clean | None, Entry]] = []
        for i in range(COPIES * len(self.clean)):
            clean = self.clean[i % len(self.clean)]
            state = noised(clean.state, self.sample, scheduler, generator, self.buffer.clock)
            entry = Entry(self.buffer.add_state(state), clean.own, -1, clean.concept)
            if clean.guidance is not None:
                self.guided.append((entry, clean.guidance))
                continue
            rows.append((clean, entry))
            if self.empty is not None and i % OTHER_EVERY == 0:
                rows.append((None, entry._replace(text=self.empty)))
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
        if self.empty is None or self.recorder.has_negative:
            leaves = self.recorder.conditioning([""], self.names)[""]
            return self.buffer.add_text("", leaves)
        return self.empty

    def _asked(self, entries: list[Entry]) -> Tensor:
        return ask(self.recorder.model, self.buffer, entries) if entries else torch.empty(0)
