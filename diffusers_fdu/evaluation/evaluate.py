"""Did it forget? Draw with and without an adapter, judge the pictures, attack, and report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..adapters import lora as adapters
from ..adapters.recipe import versions
from ..data.concepts import Concept
from ..pipelines.call_signature import check_arguments
from ..unlearner import FDUnlearner
from ..utils.distributed import Processes
from .adapter_under_test import AdapterUnderTest, adapter_under_test, concepts_of
from .attacks.attack import Attack, AttackTarget
from .attacks.plain_prompt import Removal
from .attacks.run import ATTACKS, attack
from .images import BATCH, ImageSet, Request, accepted_settings, draw
from .judges import Judge, judge_images, judge_name
from .metrics.clip import ClipScorer
from .metrics.measure import measure_metrics
from .prompt_grid import PromptGrid
from .protocols import Protocol, resolve_protocol
from .result import AttackResult, Evaluation
from .setup import EvaluationSetup, evaluation_setup

MAX_TEMPLATES = 4  # prompts in which attacks try to bring a concept back


@dataclass(frozen=True)
class EvaluationConfig:
    """How an evaluation draws its pictures, attacks and compares.

    Args:
        seeds: seeds of the pictures; by default the protocol's.
        num_inference_steps: steps of a run; by default the protocol's.
        guidance_scale: guidance of a run; by default the protocol's, or what the model was made
            for.
        pipeline_kwargs: further arguments of the runs, such as height and width.
        attack_seeds: seeds of each attack.
        prompt_grid: the names to draw and judge, and their prompts; by default the embedded
            model's, or those of the protocol.
        extractor: a function from pictures (B, 3, H, W), uint8, to features (B, D) for FID and
            KID; by default the CLIP's image features.
        oracle: a pipe that never saw the target, on the same device, for the attacks' floor.
        folder: a folder to keep the pictures in, so that an interrupted evaluation goes on.
        batch: the number of pictures drawn at once.
        data_parallel: whether the processes that `accelerate launch` started share the drawing;
            they need a folder.
        progress: whether to show progress bars.

    Example:
        >>> config = EvaluationConfig(seeds=[0, 1], num_inference_steps=10, attack_seeds=[0])
        >>> evaluation = evaluate(pipe, "forget-dog", config=config)  # doctest: +SKIP
    """

    seeds: Sequence[int] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    pipeline_kwargs: Mapping[str, Any] | None = None
    attack_seeds: Sequence[int] = (0, 1, 2)
    prompt_grid: PromptGrid | None = None
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
    """Measure what an adapter made a pipeline forget, and what the pipeline kept.

    Args:
        pipe: a diffusers pipeline, which is left as it was. Other adapters that are active on it
            count as part of the model.
        unlearner: the `FDUnlearner` that trained on this pipe, or the folder or the Hub name of an
            adapter.
        protocol: "quick", "unlearncanvas", "concept-ablation", "mace", or a `Protocol`.
        judge: a callable that says what pictures show, see `judges.Judge`; by default the embedded
            model's, or the CLIP.
        clip: a `ClipScorer`, or the folder or the Hub name of a CLIP.
        attacks: attacks, or their names in `ATTACKS`; True stands for all.
        concepts: the concepts to measure; by default those of the adapter's recipe.
        config: how to draw, attack and compare.

    Returns:
        The metrics, each with a 95 % interval, and the pictures; `write_report` writes them.

    Raises:
        ValueError: for a bad argument, targets of different domains, or if there is no judge.
        ImportError: if torchmetrics is needed and not installed.

    Example:
        >>> config = EvaluationConfig(seeds=[0], num_inference_steps=1, progress=False)
        >>> evaluation = evaluate(pipe, "forget-dog", "mace", config=config)
        >>> evaluation.targets, evaluation.metrics["ira"].count  # pictures of the other concepts
        (('dog',), 31)
    """
    config, times = config or EvaluationConfig(), [time.monotonic()]
    options = {n: getattr(config, n) for n in ("seeds", "num_inference_steps", "guidance_scale")}
    protocol = resolve_protocol(protocol, **options)
    with adapter_under_test(pipe, unlearner) as adapter:
        concepts = list(concepts or concepts_of(adapter.recipe))
        setup = evaluation_setup(
            pipe, concepts, protocol, config.prompt_grid, judge, clip, config.oracle
        )
        protocol, task = setup.protocol, setup.task
        attacks = list(ATTACKS) if attacks is True else list(attacks or ())
        if attacks and len(task.targets) != 1:
            raise ValueError("attacks need one target: pass concepts=[...] with one of them")
        kwargs = dict(config.pipeline_kwargs or {})
        check_arguments(pipe, kwargs)
        settings = accepted_settings(pipe, protocol.settings | kwargs)
        before, after = _draw_both(adapter, protocol.requests(task), settings, config)
        times.append(time.monotonic())
        metrics, left_out = measure_metrics(before, after, setup, config.extractor)
        times.append(time.monotonic())
        results = _run_attacks(adapter, setup, settings, attacks, config) if attacks else ()
        times.append(time.monotonic())
        stages = zip(("draw", "judge", "attack"), pairwise(times), strict=True)
        return Evaluation(
            protocol=protocol.name,
            about=protocol.about,
            targets=tuple(task.targets),
            judge=judge_name(setup.judge),
            images=len(after.images),
            seeds=tuple(dict.fromkeys(request.seed for request in after.requests)),
            settings=settings,
            metrics=metrics,
            attacks=results,
            recipe=dict(adapter.recipe),
            versions=versions(),
            seconds={stage: round(end - start, 1) for stage, (start, end) in stages},
            weights_sha256=adapter.digest,
            left_out=left_out,
            before=before,
            after=after,
        )


def _draw_both(
    adapter: AdapterUnderTest,
    requests: Sequence[Request],
    settings: Mapping[str, Any],
    config: EvaluationConfig,
) -> tuple[ImageSet, ImageSet]:
    """The pictures without the adapter, and with it."""
    processes = Processes(config.data_parallel)

    def images(name: str) -> ImageSet:
        folder = None if config.folder is None else Path(config.folder) / name
        title = f"draw {name}" if config.progress else None
        return draw(adapter.pipe, requests, settings, folder, config.batch, processes, title)

    with adapter.without():
        before = images("before")
    return before, images("after")


def _run_attacks(
    adapter: AdapterUnderTest,
    setup: EvaluationSetup,
    settings: Mapping[str, Any],
    attacks: Sequence[str | Attack],
    config: EvaluationConfig,
) -> tuple[AttackResult, ...]:
    """Attack the target; and the oracle in the same way, which gives the floor."""
    grid, domain, (target,) = setup.task.prompt_grid, setup.task.domain, setup.task.targets

    def is_target(images: Sequence[Any]) -> list[bool]:
        return [answer.get(domain) == target for answer in judge_images(setup.judge, images)]

    cells = grid.across(domain)
    cells = cells[:: max(1, len(cells) // MAX_TEMPLATES)][:MAX_TEMPLATES]
    templates = [grid.prompt(grid.cell(domain, "{}", rest)) for rest in cells]
    component, name = adapter.component, adapter.adapter_name
    victim = AttackTarget(
        adapter.pipe, target, is_target, templates, component, name, settings=settings
    )
    results = attack(victim, attacks, config.attack_seeds, config.progress)
    if setup.oracle is None:
        return results
    # The oracle has no adapter to take off.
    attacks = [one for one in attacks if one != "removal" and not isinstance(one, Removal)]
    with adapters.scaled(adapter.model, name, 0.0):
        victim = replace(victim, pipe=setup.oracle, adapter_name=None, reference=adapter.pipe)
        floor_results = attack(victim, attacks, config.attack_seeds, config.progress)
    floors = {result.name: result.success for result in floor_results}
    return tuple(replace(result, floor=floors.get(result.name)) for result in results)
