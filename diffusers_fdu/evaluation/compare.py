"""Which divergence: train several, sweep their strength, and see what each trades for what.

An adapter's strength (its weight on the pipe) is a dial from the original model to the full
erasure and beyond, so one training gives a whole curve of erasure against preservation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..adapters import lora as adapters
from ..config import TrainConfig
from ..data.concepts import Anchor, Concept, Target, make_concepts
from ..data.replay_buffer import ReplayBuffer
from ..data.teacher import ask
from ..divergences.conjugates import conjugate
from ..divergences.profiles import divergence
from ..settings import settings
from ..training.identity import function_name, pipe_facts
from ..unlearner import FDUnlearner
from ..utils.io import as_json, read_json, writable_folder, write_json
from .comparison import Comparison, Point

FS = ("kl", "hellinger", "chi2", "js", "tv")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
HELD_OUT = 100_003  # added to the seed: noise and fillers that no training saw

OTHERS = ("pipeline_kwargs", "progress", "component")
"""Options of an unlearner that are no fields of its configuration."""

Measure = Callable[[Any], tuple[float, float]]
"""From a pipe to (erased, kept), both 0 to 1: how far the target is gone, the rest still there."""


def compare(
    pipe: Any,
    target: Target | Sequence[Target],
    anchor: Anchor | Sequence[Anchor] = None,
    *,
    fs: Sequence[str] = FS,
    seeds: int | Sequence[int] = 3,
    strengths: Sequence[float] = STRENGTHS,
    measure: Measure | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Unlearn under each f with each seed, and measure erasure and preservation by strength.

    Args:
        pipe: a diffusers text-to-image pipeline; it is left as it was.
        target: see `FDUnlearner.unlearn`.
        anchor: see there.
        fs: names of divergences.
        seeds: how many, or which. Each is recorded once, for all fs.
        strengths: weights of the adapter at which to measure.
        measure: from a pipe to (erased, kept); None: `prediction_measure`, which needs no judge.
            For a cache a function with a name of its own, or an attribute `cache_key`.
        cache: a folder for the results of each training; what is there is not trained again, so
            an interrupted comparison goes on. None: nothing is kept.
        **options: of `FDUnlearner` other than seed.

    Raises:
        ValueError: for a bad argument, before anything is trained.
        TypeError: for an unknown option, or an f that is no name.
    """
    found = make_concepts(target, anchor)
    numbers = list(dict.fromkeys(range(seeds) if isinstance(seeds, int) else seeds))
    if not fs or not numbers or not strengths:
        raise ValueError("nothing to compare: fs, seeds and strengths need one entry each")
    if "seed" in options:
        raise ValueError("pass seeds, not seed")
    config = {name: value for name, value in options.items() if name not in OTHERS}
    names = _checked_fs(fs, settings(config).train)
    store = _Store(cache)
    title = " + ".join(concept.target for concept in found)
    points: list[Point] = []
    shows = options.get("progress", True)
    bar = tqdm(total=len(names) * len(numbers), desc="compare", disable=not shows, unit="run")
    before: tuple[float, float] | None = None
    key: dict[str, Any] = {}
    for seed in numbers:
        worker = FDUnlearner(pipe, seed=seed, **options)
        if cache is not None:
            key = _key(worker, found, strengths, measure)
        judge, buffer = measure, None
        before = before or store.get({**key, "f": None})
        for f in names:
            rows = store.get({**key, "f": f})
            if rows is None or before is None:
                buffer = buffer or worker.record(found)
                judge = judge or prediction_measure(worker, found)
            if before is None:
                before = judge(pipe)  # type: ignore[misc]
                store.put({**key, "f": None}, before)
            if rows is None:
                rows = _run(worker, found, f, buffer, strengths, judge)  # type: ignore[arg-type]
                store.put({**key, "f": f}, rows)
            points += [Point(**row) for row in rows]
            bar.update()
    bar.close()
    assert before is not None
    return Comparison(title, tuple(points), (before[0], before[1]))


def _run(
    worker: FDUnlearner,
    found: Sequence[Concept],
    f: str,
    buffer: ReplayBuffer,
    strengths: Sequence[float],
    measure: Measure,
) -> list[dict[str, Any]]:
    """Train one adapter, measure it at every strength, and take it off again."""
    before = adapters.snapshot(worker.model)
    rows = []
    try:
        worker.unlearn(found, f=f, buffer=buffer)
        for strength in strengths:
            with adapters.scaled(worker.model, str(worker.adapter_name), strength):
                erased, kept = measure(worker.pipe)
            seconds, steps = worker.recipe["seconds"]["train"], len(worker.history)
            seed = worker.config.seed
            rows.append(asdict(Point(f, seed, strength, erased, kept, steps, seconds)))
    finally:
        adapters.remove(worker.model, str(worker.adapter_name), before)
    return rows


@torch.no_grad()
def prediction_measure(worker: FDUnlearner, found: Sequence[Concept]) -> Measure:
    """Erasure and preservation by the model's own predictions, where there is no judge.

        erased = 1 - d(student(target), teacher(anchor)) / d(teacher(target), teacher(anchor))
        kept   = 1 - d(student(other), teacher(other))   / d(teacher(target), teacher(anchor))

    with d the mean squared distance over states from other noise than training's, cut to [0, 1].

    Args:
        worker: of the frozen pipe; its options say what is recorded.
        found: the concepts.
    """
    fresh = FDUnlearner(worker.pipe, worker.pipeline_kwargs, False, **_options(worker))
    buffer = fresh.record(found)
    unlearn, retain = buffer.entries("unlearn"), buffer.entries("retain")
    anchors = buffer.predictions(unlearn)
    others = buffer.predictions(retain)
    scale = (ask(worker.model, buffer, unlearn) - anchors).square().mean().item()

    def by_predictions(pipe: Any) -> tuple[float, float]:
        model = getattr(pipe, worker.component)
        left = (ask(model, buffer, unlearn) - anchors).square().mean().item() / scale
        drift = (ask(model, buffer, retain) - others).square().mean().item() / scale
        return min(max(1 - left, 0.0), 1.0), min(max(1 - drift, 0.0), 1.0)

    return by_predictions


def _options(worker: FDUnlearner) -> dict[str, Any]:
    """Of a smaller recording with another seed."""
    fields = {**vars(worker.config), **vars(worker.data), **vars(worker.performance)}
    return {
        **fields,
        "seed": worker.config.seed + HELD_OUT,
        "trajectories": max(8, worker.data.stages[-1] // 4),
        "retain_weight": 1.0,  # what is kept is measured, whether it was trained or not
    }


def _checked_fs(fs: Sequence[str], config: TrainConfig) -> list[str]:
    """Each name once, if the estimator knows it."""
    for f in fs:
        if not isinstance(f, str):
            raise TypeError(f"fs must be names of divergences, got {type(f).__name__}")
        divergence(f)
        if config.critic:
            conjugate(f)
    return list(dict.fromkeys(fs))


def _key(
    worker: FDUnlearner,
    found: Sequence[Concept],
    strengths: Sequence[float],
    measure: Measure | None,
) -> dict[str, Any]:
    """Everything that a result depends on."""
    parts = {
        "concepts": [vars(concept) for concept in found],
        "options": [vars(worker.config), vars(worker.data), vars(worker.performance)],
        "pipeline_kwargs": worker.pipeline_kwargs,
        **pipe_facts(worker.pipe),
        "strengths": list(strengths),
        "measure": "predictions" if measure is None else function_name(measure),
    }
    return as_json(parts)


class _Store:
    """Results as JSON files, named by what they depend on."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else writable_folder(folder)

    def _path(self, key: dict[str, Any]) -> Path | None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        return None if self.folder is None else self.folder / f"{digest}.json"

    def get(self, key: dict[str, Any]) -> Any:
        path = self._path(key)
        if path is None or not path.exists():
            return None
        return read_json(path)["result"]

    def put(self, key: dict[str, Any], result: Any) -> None:
        path = self._path(key)
        if path is not None:
            write_json(path, {"key": key, "result": result})
