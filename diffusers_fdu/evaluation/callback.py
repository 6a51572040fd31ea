"""A quick evaluation every few steps of a training, which can end it when the target is gone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.concepts import Concept
from ..training.callbacks import StepRecord
from .images import draw
from .judges import judge_images
from .metrics.accuracy import Judged, accuracies
from .protocols import Protocol, resolve_protocol
from .result import Metric
from .setup import evaluation_setup

WATCHED = ("ua", "ira", "cra", "harmonic_mean", "mace", "specificity")
"""The metrics to wait for: those of `accuracies` that are better when larger."""


@dataclass(frozen=True)
class EvaluationRecord:
    """The metrics by name, see `accuracies`, after a number of steps."""

    step: int
    metrics: Mapping[str, Metric]


class EvaluationCallback:
    """A callback of `FDUnlearner.unlearn` that evaluates the adapter as it is trained.

    Args:
        pipe: the pipeline that is trained. The callback needs its text encoders and its
            autoencoder, so train with `offload=False` on an accelerator.
        target: the concept that is unlearned.
        every: the number of steps between two evaluations.
        until: the metrics, and the values that all must reach for the training to end; by default
            the callback only watches.
        protocol: the protocol of the evaluation.
        on_result: a function called with each `EvaluationRecord`.
        settings: further arguments of the runs.
        **options: prompt_grid, judge and clip, as in `evaluate`.

    Attributes:
        history: an `EvaluationRecord` for each evaluation.

    Raises:
        ValueError: for a bad number, an unknown metric, or if there is no judge.

    Example:
        >>> watch = EvaluationCallback(pipe, "dog", every=20, until={"ua": 0.95, "ira": 0.9})
        >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
        >>> _ = unlearner.unlearn("dog", "cat", callback=watch)
        >>> watch.history  # there were no 20 steps
        []
    """

    def __init__(
        self,
        pipe: Any,
        target: str | Concept,
        every: int = 20,
        until: Mapping[str, float] | None = None,
        protocol: str | Protocol = "quick",
        on_result: Callable[[EvaluationRecord], None] | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of steps, got {every!r}")
        self.pipe, self.every, self.until = pipe, every, dict(until or {})
        for name in self.until:
            if name not in WATCHED:
                raise ValueError(f"cannot wait for {name!r}: choose {', '.join(WATCHED)}")
        concept = Concept(target) if isinstance(target, str) else target
        self.setup = evaluation_setup(pipe, [concept], resolve_protocol(protocol), **options)
        self.requests = self.setup.protocol.requests(self.setup.task)
        self.settings = {**self.setup.protocol.settings, **(settings or {})}
        self.on_result = on_result
        self.history: list[EvaluationRecord] = []

    def __call__(self, record: StepRecord) -> bool:
        """Evaluate if it is time; True once all metrics have what they must reach."""
        steps_done = record.step + 1
        if steps_done % self.every:
            return False
        check_on_one_device(self.pipe)
        images = draw(self.pipe, self.requests, self.settings).images
        answers = judge_images(self.setup.judge, images)
        metrics = accuracies(Judged(self.requests, answers, self.setup.task.domain))
        self.history.append(EvaluationRecord(steps_done, metrics))
        if self.on_result is not None:
            self.on_result(self.history[-1])
        reached = (n in metrics and metrics[n].value >= least for n, least in self.until.items())
        return bool(self.until) and all(reached)


def check_on_one_device(pipe: Any) -> None:
    """Refuse a pipe whose parts are on several devices."""
    parts = [p for p in getattr(pipe, "components", {}).values() if isinstance(p, nn.Module)]
    # Accelerate's hooks bring a part to the accelerator when it is called.
    unhooked = [p for p in parts if not any(hasattr(m, "_hf_hook") for m in p.modules())]
    device_types = {parameter.device.type for part in unhooked for parameter in part.parameters()}
    if len(device_types) > 1:
        raise ValueError(
            "parts of the pipe are off the accelerator while it is trained: use offload=False to "
            "watch the training"
        )
