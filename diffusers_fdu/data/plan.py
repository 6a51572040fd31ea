"""From concepts and options to a replay buffer: which prompts are drawn, and what is kept."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config import RETAIN_PER_TRAJECTORY
from ..pipelines.recorder import BATCH, Recorder
from ..pipelines.tokenizers import vocabulary
from ..settings import Settings
from ..utils.distributed import Processes
from ..utils.io import as_json
from .concepts import TEMPLATES, Concept
from .recording import Stages, StopRecording, record
from .replay_buffer import ReplayBuffer
from .templates import fill, fill_words, name_words, with_plurals, without


@dataclass(frozen=True)
class RunContext:
    """What a recording and a training share: the pipeline, its options, and who takes part."""

    pipe: Any
    component: str  # name of the denoiser that is recorded and trained
    settings: Settings
    pipeline_kwargs: dict[str, Any] = field(default_factory=dict)  # of the recorded runs
    processes: Processes = field(default_factory=Processes)
    progress: bool = True  # whether progress bars are shown

    @property
    def model(self) -> nn.Module:
        """The denoiser."""
        return getattr(self.pipe, self.component)


@dataclass(frozen=True)
class RecordingPlan:
    """What is to be recorded; the options of the context have a value for every "auto"."""

    context: RunContext
    concepts: Sequence[Concept]
    is_enough: StopRecording | None = None  # stops the recording early
    keep_texts: bool = False  # whether the closed form needs the texts of all prompts
    active_adapters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by denoiser

    @property
    def batch(self) -> int:
        """How many pictures are recorded at once."""
        size = self.context.settings.performance.record_batch
        return BATCH if size == "auto" else size

    @property
    def words(self) -> list[str]:
        """The vocabulary without the concepts' names."""
        names = [name for concept in self.concepts for name in concept.names]
        return without(vocabulary(self.context.pipe), names)

    def recorder(self) -> Recorder:
        """The recorder of the pipe."""
        context, seed = self.context, self.context.settings.train.seed
        return Recorder(context.pipe, context.pipeline_kwargs, seed, self.batch, context.component)

    def run(self) -> ReplayBuffer:
        """Record it; the errors are those of `record` and `retain_prompts`."""
        context, words = self.context, self.words
        train, data, _ = context.settings
        rng = random.Random(train.seed)
        pairs = [
            pair
            for i, concept in enumerate(self.concepts)
            for pair in concept.prompt_pairs(data.stages[-1], words, rng, i)
        ]
        retain: list[str] = []
        if train.retain_weight > 0:
            count, all_words = RETAIN_PER_TRAJECTORY * data.stages[-1], vocabulary(context.pipe)
            retain = retain_prompts(self.concepts, data.retain, count, all_words, rng)
        recorder = self.recorder()
        is_bf16 = getattr(recorder.model, "dtype", None) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 else torch.float16
        progress, processes = context.progress, context.processes
        stages = Stages(data.stages, self.is_enough)
        buffer = record(
            recorder, pairs, retain, dtype, progress, processes, stages, self.keep_texts
        )
        buffer.about = self.about()
        return buffer

    def about(self) -> dict[str, Any]:
        """Everything that the buffer depends on besides the pipe's weights, as JSON types."""
        train, data, _ = self.context.settings
        return as_json(
            {
                "concepts": [vars(concept) for concept in self.concepts],
                "seed": train.seed,
                "retains": train.retain_weight > 0,
                "component": self.context.component,
                "group": max(BATCH, self.batch),
                "pipeline_kwargs": self.context.pipeline_kwargs,
                "active_adapters": self.active_adapters,
                "trajectories": data.trajectories,
                "retain": data.retain,
                "defence": data.defence,
            }
        )

    def check(self, buffer: ReplayBuffer) -> ReplayBuffer:
        """The buffer, if this is what was recorded; else a ValueError with what differs."""
        for name, value in self.about().items():
            if buffer.about.get(name) != value:
                raise ValueError(
                    f"the buffer was recorded with {name}={buffer.about.get(name)!r} and is to be "
                    f"trained on with {value!r}: record it anew"
                )
        return buffer


def retain_prompts(
    concepts: Sequence[Concept],
    retain: Sequence[str] | None,
    count: int,
    words: Sequence[str],
    rng: random.Random,
) -> list[str]:
    """Prompts whose pictures must stay as they are; none asks for a target.

    `retain` is what matters to the user: each of its prompts is used as it is, and single words in
    the concepts' templates, too. Without it, `words` of the vocabulary stand in those templates,
    which needs neither data nor knowledge of the other concepts. A prompt of `retain` that has all
    words of a target is refused with a ValueError.
    """
    if isinstance(retain, str):
        raise ValueError(f"retain must be a list of prompts, got the string {retain!r}")
    targets = [name for concept in concepts for name in concept.names]
    for prompt in retain or ():
        for target in targets:
            if all(with_plurals({w}) & name_words(prompt) for w in name_words(target)):
                raise ValueError(f"cannot retain {prompt!r}: it asks for the target {target!r}")
    free_words = without(words, targets)
    subjects = retain or without(free_words, [concept.anchor_name for concept in concepts])
    if not subjects:
        return [""] * count
    templates = [c.usable_templates(free_words) for c in concepts if c.kind != "prompt"]
    templates = templates or [[t for t in TEMPLATES["object"] if free_words or "{word}" not in t]]
    prompts = []
    for i in range(count):
        subject = rng.choice(subjects)
        noun = re.sub(r"^(a|an|the) ", "", subject)
        if retain and (i % 2 == 0 or " " in noun):
            prompts.append(subject)
        else:
            template = rng.choice(templates[i // 2 % len(templates)])
            prompts.append(fill(fill_words(template, free_words, rng), noun))
    return prompts
