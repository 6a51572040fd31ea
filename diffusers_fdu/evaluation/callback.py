"""A quick evaluation every few steps of a training, which can end it when the target is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.concepts import Concept
from ..training.callbacks import StepRecord
from .images import BATCH, draw
from .judges import asked
from .metrics.accuracy import Judged, accuracies
from .protocols import Protocol, UnlearningTask
from .protocols import protocol as chosen
from .result import Metric
from .setup import evaluation_setup


@dataclass(frozen=True)
class EvaluationRecord:
    """What was found after a step.

    Args:
        step: number of steps done.
        metrics: by name, see `accuracies`.
    """

    step: int
    metrics: Mapping[str, Metric]


class EvaluationCallback:
    """A callback of `FDUnlearner.unlearn` that evaluates the adapter as it is trained.

        watch = EvaluationCallback(pipe, "dog", every=20, until={"ua": 0.95})
        FDUnlearner(pipe).unlearn("dog", "cat", callback=watch)

    Args:
        pipe: the pipeline that is trained; its text encoders and autoencoder are needed, so on an
            accelerator train with `offload=False`.
        target: what is unlearned.
        every: steps between two evaluations.
        until: metrics and what they must reach for the training to end; none: it goes on.
        protocol: of the evaluation.
        on_result: called with each `EvaluationRecord`.
        settings: arguments of the runs.
        **options: of `evaluation_setup`: canvas, judge, clip.

    Attributes:
        history: a `EvaluationRecord` for every evaluation.

    Raises:
        ValueError: for a bad number, an unknown metric, or no judge.
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
        concept = Concept(target) if isinstance(target, str) else target
        self.pipe, self.every, self.until = pipe, every, dict(until or {})
        for name in self.until:
            if name not in WATCHED:
                raise ValueError(f"cannot wait for {name!r}: choose {', '.join(WATCHED)}")
        plan = chosen(protocol)
        table = evaluation_setup(pipe, [concept], plan.name, **options)
        self._judge = table.judge
        self._domain = table.canvas.domain_of(concept.target, concept.kind)
        self._target = concept.target
        question = UnlearningTask(
            table.canvas, [concept.target], self._domain, [concept.anchor_name]
        )
        self.requests = plan.requests(question)
        scale = table.guidance_scale if plan.guidance_scale is None else plan.guidance_scale
        self.settings = {
            "num_inference_steps": plan.num_inference_steps,
            "guidance_scale": scale,
            **plan.extra,
            **(settings or {}),
        }
        self.on_result = on_result
        self.history: list[EvaluationRecord] = []

    def __call__(self, record: StepRecord) -> bool:
        """Evaluate if it is time; True once everything that is waited for is reached."""
        done = record.step + 1
        if done % self.every:
            return False
        check_together(self.pipe)
        found = EvaluationRecord(done, self.measure())
        self.history.append(found)
        if self.on_result is not None:
            self.on_result(found)
        return bool(self.until) and all(
            name in found.metrics and found.metrics[name].value >= least
            for name, least in self.until.items()
        )

    def measure(self) -> dict[str, Metric]:
        """The metrics of the pipe as it is now."""
        gallery = draw(self.pipe, self.requests, self.settings, batch=BATCH)
        answers = asked(self._judge, gallery.images)
        judged = Judged(self.requests, answers, [self._target], self._domain)
        return accuracies(judged)


def check_together(pipe: Any) -> None:
    """Refuse to draw with a pipe whose parts are on several devices.

    Raises:
        ValueError: if text encoders or autoencoder were set aside for the training.
    """
    parts = [p for p in getattr(pipe, "components", {}).values() if isinstance(p, nn.Module)]
    free = [p for p in parts if not any(hasattr(m, "_hf_hook") for m in p.modules())]
    kinds = {parameter.device.type for part in free for parameter in part.parameters()}
    if len(kinds) > 1:
        raise ValueError(
            "parts of the pipe are off the accelerator while it is trained: use offload=False to "
            "watch the training"
        )


WATCHED = ("ua", "ira", "cra", "harmonic_mean", "mace", "specificity")
"""Metrics that are better when larger."""
