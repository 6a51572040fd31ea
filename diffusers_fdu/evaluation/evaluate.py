"""Did it forget? Draw with and without an adapter, have it judged, attack it, and say so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters import lora as adapters
from ..adapters.recipe import versions
from ..data.concepts import Concept
from ..unlearner import FDUnlearner
from ..utils.distributed import Processes
from .adapter_under_test import AdapterUnderTest, adapter_under_test, concepts_of
from .attacks.attack import Attack, AttackTarget
from .attacks.relearning import Removal
from .attacks.run import ATTACKS, attack
from .images import BATCH, ImageSet, accepted, draw
from .judges import asked, name_of
from .metrics.clip import ClipScorer
from .metrics.measure import Pictures, measure_metrics
from .prompt_grid import PromptGrid
from .protocols import Protocol, UnlearningTask
from .protocols import protocol as chosen
from .request import Judge
from .result import AttackResult, Evaluation
from .setup import EvaluationSetup, evaluation_setup

CELLS = 4
"""Prompts in which attacks try to bring a concept back, at most."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How an evaluation draws its pictures, attacks and compares.

    Args:
        seeds: seeds of the pictures; None: the protocol's.
        num_inference_steps: steps of a run; None: the protocol's.
        guidance_scale: guidance of a run; None: the protocol's, or what the model was made for.
        pipeline_kwargs: further arguments of the runs, such as height and width.
        attack_seeds: seeds of each attack.
        canvas: what can be asked for; None: the embedded model's, or that of the protocol.
        extractor: from pictures (B, 3, H, W), uint8, to features (B, D) for FID and KID; None:
            the CLIP's image features.
        oracle: a pipe that never saw the target, on the same device, for the attacks' floor.
        folder: keeps the pictures, so that an interrupted evaluation goes on.
        batch: pictures drawn at once.
        data_parallel: the processes that `accelerate launch` started share the drawing; needs a
            folder.
        progress: show progress bars.
    """

    seeds: Sequence[int] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    pipeline_kwargs: Mapping[str, Any] | None = None
    attack_seeds: Sequence[int] = (0, 1, 2)
    canvas: PromptGrid | None = None
    extractor: Any = None
    oracle: Any = None
    folder: str | Path | None = None
    batch: int = BATCH
    data_parallel: bool = False
    progress: bool = True


def evaluate(
    pipe: Any,
    unlearner: FDUnlearner | str | Path,
    protocol: str | Protocol = "quick",
    *,
    judge: Judge | None = None,
    clip: ClipScorer | str | Path | None = None,
    attacks: Sequence[str | Attack] | bool = (),
    concepts: Sequence[Concept] | None = None,
    config: EvaluationConfig | None = None,
) -> Evaluation:
    """Measure what an adapter made a pipeline forget, and what it kept.

        evaluate(pipe, unlearner, attacks=["inversion"], config=EvaluationConfig(seeds=[0, 1]))

    Args:
        pipe: a diffusers pipeline; left as it was. Other adapters that are active on it count as
            part of the model.
        unlearner: the `FDUnlearner` that trained on this pipe, or the folder or the Hub name of an
            adapter.
        protocol: "quick", "unlearncanvas", "concept-ablation", "mace", or a `Protocol`.
        judge: a callable on pictures, see `Judge`; None: the embedded model's, or the CLIP.
        clip: a `ClipScorer`, or the folder or Hub name of a CLIP.
        attacks: names of `ATTACKS`, or attacks; True: all.
        concepts: what was to be forgotten; None: what the recipe says.
        config: how pictures are drawn, attacked and compared.

    Returns:
        The figures, each with a 95 % interval, and the pictures; `write_report` writes them.

    Raises:
        ValueError: for a bad argument, targets of different domains, or no judge.
        ImportError: if torchmetrics is needed and not installed.
    """
    config, clock = config or EvaluationConfig(), _Clock()
    names = ("seeds", "num_inference_steps", "guidance_scale")
    plan = chosen(protocol, **{name: getattr(config, name) for name in names})
    with adapter_under_test(pipe, unlearner) as own:
        found = list(concepts or concepts_of(own.recipe))
        table = evaluation_setup(pipe, found, plan.name, config.canvas, judge, clip, config.oracle)
        if plan.guidance_scale is None and table.guidance_scale is not None:
            plan = replace(plan, guidance_scale=table.guidance_scale)
        question = _question(table, found)
        wanted = list(ATTACKS) if attacks is True else list(attacks or ())
        if wanted and len(question.targets) != 1:
            raise ValueError("attacks need one target: pass concepts=[...] with one of them")
        settings = _settings(pipe, plan, config.pipeline_kwargs or {})
        before, after = _galleries(own, plan.requests(question), settings, config)
        clock.passed("draw")
        answers = [asked(table.judge, gallery.images) for gallery in (before, after)]
        pictures = Pictures(before, after, *answers)
        metrics, left_out = measure_metrics(
            pictures, question, plan.metrics, table.clip, config.extractor
        )
        clock.passed("judge")
        results: tuple[AttackResult, ...] = ()
        if wanted:
            results = _attacked(own, table, question, settings, wanted, config)
        clock.passed("attack")
        return Evaluation(
            protocol=plan.name,
            about=plan.about,
            targets=tuple(question.targets),
            judge=name_of(table.judge),
            images=len(after.images),
            seeds=tuple(dict.fromkeys(request.seed for request in after.requests)),
            settings=settings,
            metrics=metrics,
            attacks=results,
            recipe=dict(own.recipe),
            versions=versions(),
            seconds=clock.seconds,
            weights_sha256=own.digest,
            left_out=left_out,
            before=before,
            after=after,
        )


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def passed(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._last = round(now - self._last, 1), now


def _settings(pipe: Any, plan: Protocol, more: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the runs; what the protocol has and the pipeline does not take is left out.

    Raises:
        ValueError: for an argument of the user's that the pipeline does not take.
    """
    for name in more:
        if name not in accepted(pipe, {name: True}):
            raise ValueError(f"pipeline_kwargs: {type(pipe).__name__} takes no {name!r}")
    found = {
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": plan.guidance_scale,
        **plan.extra,
        **more,
    }
    return accepted(pipe, found)


def _question(table: EvaluationSetup, concepts: Sequence[Concept]) -> UnlearningTask:
    """What is to be forgotten, on the canvas.

    Raises:
        ValueError: if the targets are of different domains.
    """
    domains = {c.target: table.canvas.domain_of(c.target, c.kind) for c in concepts}
    if len(set(domains.values())) > 1:
        shown = ", ".join(f"{target}: {domain}" for target, domain in domains.items())
        raise ValueError(f"targets of different domains ({shown}): pass concepts of one")
    anchors = [concept.anchor_name for concept in concepts]
    return UnlearningTask(table.canvas, list(domains), next(iter(domains.values())), anchors)


def _galleries(
    own: AdapterUnderTest,
    requests: Sequence[Any],
    settings: Mapping[str, Any],
    config: EvaluationConfig,
) -> tuple[ImageSet, ImageSet]:
    """The pictures without the adapter, and with it."""
    place = None if config.folder is None else Path(config.folder)
    batch, processes = config.batch, Processes(config.data_parallel)

    def pictures(name: str) -> ImageSet:
        where, title = place and place / name, f"draw {name}" if config.progress else None
        return draw(own.pipe, requests, settings, where, batch, processes, title)

    with own.without():
        before = pictures("before")
    return before, pictures("after")


def _attacked(
    own: AdapterUnderTest,
    table: EvaluationSetup,
    question: UnlearningTask,
    settings: Mapping[str, Any],
    names: Sequence[str | Attack],
    config: EvaluationConfig,
) -> tuple[AttackResult, ...]:
    """Attack the target, and the oracle in the same way."""
    (target,), domain, canvas = question.targets, question.domain, table.canvas
    seeds, progress = config.attack_seeds, config.progress

    def is_target(images: Sequence[Any]) -> list[bool]:
        return [answer.get(domain) == target for answer in asked(table.judge, images)]

    cells = canvas.across(domain)
    cells = cells[:: max(1, len(cells) // CELLS)][:CELLS]
    templates = [canvas.prompt(canvas.cell(domain, "{}", rest)) for rest in cells]
    attack_target = AttackTarget(
        own.pipe, target, is_target, templates, own.component, own.adapter_name, settings=settings
    )
    results = attack(attack_target, names, seeds, progress)
    if table.oracle is None:
        return results
    with adapters.scaled(own.model, own.adapter_name, 0.0):
        floor = replace(attack_target, pipe=table.oracle, adapter_name=None, reference=own.pipe)
        there = [name for name in names if name != "removal" and not isinstance(name, Removal)]
        least = {one.name: one.success for one in attack(floor, there, seeds, progress)}
    return tuple(replace(one, floor=least.get(one.name)) for one in results)
