"""From concepts and options to a replay buffer: which prompts are drawn, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .adversary import Robust, expose
from .checkpoint import Checkpoints
from .concepts import Concept
from .config import RETAIN_PER_TRAJECTORY, DataConfig
from .denoiser import denoiser_names
from .identity import active_strengths
from .processes import Processes
from .recipe import as_json
from .recorder import BATCH, Recorder
from .replay import ReplayBuffer
from .retain import neighbours, retain_prompts
from .trajectories import IsEnough, Stages, record
from .words import vocabulary, without

CANDIDATES = 256
"""Prompts among which mining looks, a word of the vocabulary in each."""


@dataclass(frozen=True)
class Recording:
    """What is to be recorded.

    Args:
        pipe: the frozen pipeline.
        concepts: what is to be forgotten.
        data: see `DataConfig`.
        pipeline_kwargs: of the runs.
        seed: of prompts and noise.
        retains: whether prompts to retain are drawn.
        processes: share the work.
        component: the denoiser to record.
        batch: pictures recorded at once.
        is_enough: see `Stages`.
    """

    pipe: Any
    concepts: Sequence[Concept]
    data: DataConfig
    pipeline_kwargs: dict[str, Any]
    seed: int
    retains: bool
    processes: Processes = field(default_factory=Processes)
    component: str | None = None
    batch: int = BATCH
    is_enough: IsEnough | None = None

    def run(self, progress: bool = True) -> ReplayBuffer:
        """Record it.

        Raises:
            ValueError: see `record`.
        """
        rng, data = random.Random(self.seed), self.data
        words = vocabulary(self.pipe)
        free = without(words, [name for concept in self.concepts for name in concept.names])
        pairs = [
            pair
            for i, concept in enumerate(self.concepts)
            for pair in concept.prompt_pairs(data.stages[-1], free, rng, i)
        ]
        retain, candidates = self._retained(words, rng) if self.retains else ([], [])
        recorder = self.recorder()
        is_bf16 = getattr(recorder.model, "dtype", None) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 else torch.float16
        stages = Stages(data.stages, RETAIN_PER_TRAJECTORY, self.is_enough)
        buffer = record(
            recorder,
            pairs,
            retain,
            dtype,
            progress,
            data.states,
            candidates,
            self.processes,
            stages,
        )
        if data.defence is not None:
            self._expose(recorder, buffer, free, data.defence, progress)
        buffer.about = self.about()
        return buffer

    def recorder(self) -> Recorder:
        """Runs the pipe."""
        return Recorder(self.pipe, self.pipeline_kwargs, self.seed, self.batch, self.component)

    def _expose(
        self,
        recorder: Recorder,
        buffer: ReplayBuffer,
        words: Sequence[str],
        robust: Robust,
        progress: bool,
    ) -> None:
        """Record what an adversary looks for."""
        rng = random.Random(self.seed)
        found = [replace(concept, aliases=()) for concept in self.concepts]
        pairs = [
            pair
            for i, concept in enumerate(found)
            for pair in concept.prompt_pairs(robust.prompts, words, rng, i)
        ]
        names = [concept.target for concept in found]
        expose(recorder, pairs, names, buffer, robust, progress, self.processes)

    def obtain(
        self, buffer: ReplayBuffer | None, checkpoints: Checkpoints | None, progress: bool = True
    ) -> ReplayBuffer:
        """What was recorded: given, kept by a training that is gone on with, or recorded now.

        Raises:
            ValueError: see `check` and `record`.
        """
        new = None
        if buffer is not None:
            buffer = self.check(buffer)
        else:
            kept = checkpoints.recorded() if checkpoints is not None else None
            # Either all processes have it, or all record.
            if all(self.processes.gather([kept is not None])) and kept is not None:
                buffer = ReplayBuffer.from_state(kept)
            else:
                buffer = self.run(progress)
                new = buffer.state()
        if checkpoints is not None:
            checkpoints.begin(new)
        return buffer

    def _retained(self, words: Sequence[str], rng: random.Random) -> tuple[list[str], list[str]]:
        """Prompts to retain, and prompts among which to mine more."""
        data = self.data
        source = data.retain_from if data.retain is None else None
        near = neighbours(self.pipe, self.concepts, words) if source == "neighbours" else []
        number = RETAIN_PER_TRAJECTORY * data.stages[-1]
        retain = retain_prompts(self.concepts, data.retain, number, words, rng, near)
        if source != "mined":
            return retain, []
        drawn = retain_prompts(self.concepts, None, CANDIDATES, words, rng)
        return retain, list(dict.fromkeys(drawn))

    def about(self) -> dict[str, Any]:
        """Everything that the buffer depends on besides the pipe's weights, as JSON types."""
        names = ("trajectories", "retain", "retain_from", "states", "defence")
        models = {name: getattr(self.pipe, name) for name in denoiser_names(self.pipe)}
        return as_json(
            {
                "concepts": [vars(concept) for concept in self.concepts],
                "seed": self.seed,
                "retains": self.retains,
                "component": self.component,
                "group": max(BATCH, self.batch),
                "pipeline_kwargs": self.pipeline_kwargs,
                "active_adapters": {n: active_strengths(m) for n, m in models.items()},
                **{name: getattr(self.data, name) for name in names},
            }
        )

    def check(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """A buffer, if this is what was recorded.

        Raises:
            ValueError: with what differs.
        """
        for name, value in self.about().items():
            if buffer.about.get(name) != value:
                raise ValueError(
                    f"the buffer was recorded with {name}={buffer.about.get(name)!r} and is to be "
                    f"trained on with {value!r}: record it anew"
                )
        return buffer
