"""From concepts and options to a replay buffer: which prompts are drawn, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import RETAIN_PER_TRAJECTORY, DataConfig
from ..pipelines.recorder import BATCH, Recorder
from ..pipelines.tokenizers import vocabulary
from ..utils.distributed import Processes
from ..utils.io import as_json
from .concepts import Concept
from .recording import IsEnough, Stages, record
from .replay_buffer import ReplayBuffer
from .retain import retain_prompts
from .templates import without


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
        keep_texts: see `record`.
        active_adapters: their strengths, by denoiser.
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
    keep_texts: bool = False
    active_adapters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def run(self, progress: bool = True) -> ReplayBuffer:
        """Record it.

        Raises:
            ValueError: see `record`.
        """
        rng, data = random.Random(self.seed), self.data
        words, free = vocabulary(self.pipe), self.words
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
            progress,
            self.processes,
            stages,
            self.keep_texts,
        )
        buffer.about = self.about()
        return buffer

    @property
    def words(self) -> list[str]:
        """The vocabulary without the concepts' names."""
        names = [name for concept in self.concepts for name in concept.names]
        return without(vocabulary(self.pipe), names)

    def recorder(self) -> Recorder:
        """Runs the pipe."""
        return Recorder(self.pipe, self.pipeline_kwargs, self.seed, self.batch, self.component)

    def about(self) -> dict[str, Any]:
        """Everything that the buffer depends on besides the pipe's weights, as JSON types."""
        names = ("trajectories", "retain", "defence")
        return as_json(
            {
                "concepts": [vars(concept) for concept in self.concepts],
                "seed": self.seed,
                "retains": self.retains,
                "component": self.component,
                "group": max(BATCH, self.batch),
                "pipeline_kwargs": self.pipeline_kwargs,
                "active_adapters": self.active_adapters,
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
