"""From concepts and options to a replay buffer: which prompts are drawn, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import RETAIN_PER_TRAJECTORY
from ..pipelines.context import RunContext
from ..pipelines.recorder import BATCH, Recorder
from ..pipelines.tokenizers import vocabulary
from ..utils.io import as_json
from .concepts import Concept
from .recording import Stages, StopRecording, record
from .replay_buffer import ReplayBuffer
from .retain import retain_prompts
from .templates import without


@dataclass(frozen=True)
class RecordingPlan:
    """What is to be recorded.

    Args:
        context: the frozen pipeline, and the options with a value for every "auto".
        concepts: what is to be forgotten.
        is_enough: see `Stages`.
        keep_texts: see `record`.
        active_adapters: strengths of the adapters that are active, by denoiser.
    """

    context: RunContext
    concepts: Sequence[Concept]
    is_enough: StopRecording | None = None
    keep_texts: bool = False
    active_adapters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def retains(self) -> bool:
        """Whether prompts to retain are drawn."""
        return self.context.settings.train.retain_weight > 0

    @property
    def batch(self) -> int:
        """How many pictures are recorded at once."""
        size = self.context.settings.performance.record_batch
        return BATCH if size == "auto" else size

    def run(self) -> ReplayBuffer:
        """Record it.

        Raises:
            ValueError: see `record`.
        """
        train, data, _ = self.context.settings
        rng, free = random.Random(train.seed), self.words
        words = vocabulary(self.context.pipe)
        pairs = [
            pair
            for i, concept in enumerate(self.concepts)
            for pair in concept.prompt_pairs(data.stages[-1], free, rng, i)
        ]
        number = RETAIN_PER_TRAJECTORY * data.stages[-1]
        retain: list[str] = []
        if self.retains:
            retain = retain_prompts(self.concepts, data.retain, number, words, rng)
        recorder = self.recorder()
        is_bf16 = getattr(recorder.model, "dtype", None) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 else torch.float16
        stages = Stages(data.stages, RETAIN_PER_TRAJECTORY, self.is_enough)
        buffer = record(
            recorder,
            pairs,
            retain,
            dtype,
            self.context.progress,
            self.context.processes,
            stages,
            self.keep_texts,
        )
        buffer.about = self.about()
        return buffer

    @property
    def words(self) -> list[str]:
        """The vocabulary without the concepts' names."""
        names = [name for concept in self.concepts for name in concept.names]
        return without(vocabulary(self.context.pipe), names)

    def recorder(self) -> Recorder:
        """Runs the pipe."""
        context, seed = self.context, self.context.settings.train.seed
        return Recorder(context.pipe, context.pipeline_kwargs, seed, self.batch, context.component)

    def about(self) -> dict[str, Any]:
        """Everything that the buffer depends on besides the pipe's weights, as JSON types."""
        names = ("trajectories", "retain", "defence")
        return as_json(
            {
                "concepts": [vars(concept) for concept in self.concepts],
                "seed": self.context.settings.train.seed,
                "retains": self.retains,
                "component": self.context.component,
                "group": max(BATCH, self.batch),
                "pipeline_kwargs": self.context.pipeline_kwargs,
                "active_adapters": self.active_adapters,
                **{name: getattr(self.context.settings.data, name) for name in names},
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
