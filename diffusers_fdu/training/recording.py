"""What a training is recorded on: planned, drawn, and for robust training attacked."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters.target_modules import has_cross_attention
from ..data.concepts import Concept
from ..data.plan import RecordingPlan, RunContext
from ..data.replay_buffer import ReplayBuffer
from ..pipelines.denoiser import denoiser_names
from .agreement import Agreement, starts_in_closed_form
from .checkpoint import Checkpoints
from .identity import active_strengths
from .robust import expose_concepts


def plan_recording(
    context: RunContext, concepts: Sequence[Concept], is_new: bool = True
) -> RecordingPlan:
    """Say what is to be recorded.

    Args:
        context: the pipeline and the options, with a value for every "auto".
        concepts: what is to be forgotten.
        is_new: whether the adapter begins anew. Recording may then stop early; how few pictures
            suffice without the closed form was not measured.
    """
    pipe, model, settings = context.pipe, context.model, context.settings
    stops = is_new and starts_in_closed_form(settings, model)
    return RecordingPlan(
        context,
        concepts,
        Agreement(pipe, model, settings) if stops else None,
        has_cross_attention(model),
        {name: active_strengths(getattr(pipe, name)) for name in denoiser_names(pipe)},
    )


def record(recording: RecordingPlan) -> ReplayBuffer:
    """Draw what was planned, and for robust training what an adversary looks for.

    Raises:
        ValueError: see `data.recording.record`.
    """
    context, buffer = recording.context, recording.run()
    defence = context.settings.data.defence
    if defence is not None:
        expose_concepts(
            recording.recorder(),
            recording.concepts,
            recording.words,
            buffer,
            defence,
            context.settings.train.seed,
            context.progress,
            context.processes,
        )
    return buffer


def obtain(
    recording: RecordingPlan, buffer: ReplayBuffer | None, checkpoints: Checkpoints | None
) -> ReplayBuffer:
    """What was recorded: given, kept by a training that is gone on with, or recorded now.

    Raises:
        ValueError: see `RecordingPlan.check` and `record`.
    """
    new = None
    if buffer is not None:
        buffer = recording.check(buffer)
    else:
        kept = checkpoints.recorded() if checkpoints is not None else None
        # Either all processes have it, or all record.
        if all(recording.context.processes.gather([kept is not None])) and kept is not None:
            buffer = ReplayBuffer.from_state_dict(kept)
        else:
            buffer = record(recording)
            new = buffer.state_dict()
    if checkpoints is not None:
        checkpoints.begin(new)
    return buffer
