"""Which divergence: train several, sweep their strength, and see what each trades for what.

An adapter's strength (its weight on the pipe) is a dial from the original model to the full
erasure and beyond, so one training gives a whole curve of erasure against preservation.
"""

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
from ..training.identity import function_name, pipe_facts
from ..unlearner import FDUnlearner
from ..utils.io import as_json, read_json, writable_folder, write_json
from .comparison import Comparison, Point

FS = ("kl", "hellinger", "chi2", "js", "tv")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
HELD_OUT = 100_003  # added to the seed: noise and fillers that no training saw

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
        pipe: a diffusers text-to-image pipeline, which is left as it was.
        target: the concept to forget, or several, as in `FDUnlearner.unlearn`.
        anchor: what takes its place, as there.
        fs: names of divergences.
        seeds: the seeds, or their number. Each is recorded once, for all fs.
        strengths: weights of the adapter at which to measure.
        measure: a function from a pipe to (erased, kept), both 0 to 1; by default
            `prediction_measure`, which needs no judge. For a cache it must have a name of its own,
            or an attribute `cache_key`.
        cache: a folder for the results of each training. What is there is not trained again, so
            an interrupted comparison goes on.
        **options: options of `FDUnlearner` other than seed.

    Raises:
        ValueError: for a bad argument, before anything is trained.
        TypeError: for an unknown option, or an f that is no name.

    Example:
        >>> comparison = compare(
        ...     pipe, "dog", "cat", fs=["kl"], seeds=1, strengths=[0.5, 1.0],
        ...     measure=lambda pipe: (0.5, 0.5), steps=2, trajectories=2, progress=False)
        >>> [(point.f, point.strength, point.erased) for point in comparison.points]
        [('kl', 0.5, 0.5), ('kl', 1.0, 0.5)]
    """
    concept_list = make_concepts(target, anchor)
    seed_list = list(dict.fromkeys(range(seeds) if isinstance(seeds, int) else seeds))
    if not fs or not seed_list or not strengths:
        raise ValueError("nothing to compare: fs, seeds and strengths need one entry each")
    if "seed" in options:
        raise ValueError("pass seeds, not seed")
    workers = [FDUnlearner(pipe, seed=seed, **options) for seed in seed_list]
    names = _checked_fs(fs, workers[0].config)
    results = _ResultCache(cache)
    points: list[Point] = []
    before: tuple[float, float] | None = None
    total, quiet = len(names) * len(workers), not options.get("progress", True)
    with tqdm(total=total, desc="compare", disable=quiet, unit="run") as bar:
        for worker in workers:
            # What the seed before recorded is let go before more is recorded.
            buffer = judge = None  # type: Any
            if cache is not None:
                results.key = _cache_key(worker, concept_list, strengths, measure)
            before = before or results.get(None)
            rows_by_f = {f: results.get(f) for f in names}
            missing = [f for f, rows in rows_by_f.items() if rows is None]
            bar.update(len(names) - len(missing))
            if missing or before is None:
                buffer = worker.record(concept_list)
                judge = measure or prediction_measure(worker, concept_list)
            if before is None:
                before = results.put(None, judge(pipe))
            for f in missing:
                rows = _train_and_measure(worker, concept_list, f, buffer, strengths, judge)
                rows_by_f[f] = results.put(f, rows)
                bar.update()
            points += [Point(**row) for rows in rows_by_f.values() for row in rows]
    title = " + ".join(concept.target for concept in concept_list)
    return Comparison(title, tuple(points), tuple(before))  # type: ignore[arg-type]


def _train_and_measure(
    worker: FDUnlearner,
    concept_list: Sequence[Concept],
    f: str,
    buffer: ReplayBuffer,
    strengths: Sequence[float],
    measure: Measure,
) -> list[dict[str, Any]]:
    """Train one adapter, measure it at every strength, and take it off again."""
    state_before = adapters.snapshot(worker.model)
    rows = []
    try:
        worker.unlearn(concept_list, f=f, buffer=buffer)
        seconds, steps = worker.recipe["seconds"]["train"], len(worker.history)
        for strength in strengths:
            with adapters.scaled(worker.model, str(worker.adapter_name), strength):
                erased, kept = measure(worker.pipe)
            point = Point(f, worker.config.seed, strength, erased, kept, steps, seconds)
            rows.append(asdict(point))
    finally:
        adapters.remove(worker.model, str(worker.adapter_name), state_before)
    return rows


@torch.no_grad()
def prediction_measure(worker: FDUnlearner, concept_list: Sequence[Concept]) -> Measure:
    """Erasure and preservation by the model's own predictions, where there is no judge.

        erased = 1 - d(student(target), teacher(anchor)) / d(teacher(target), teacher(anchor))
        kept   = 1 - d(student(other), teacher(other))   / d(teacher(target), teacher(anchor))

    with d the mean squared distance over states from other noise than training's, cut to [0, 1].
    The worker's pipe must be frozen; its options say how to record, with another seed and less.
    """
    options = {
        **vars(worker.config),
        **vars(worker.data),
        **vars(worker.performance),
        "seed": worker.config.seed + HELD_OUT,
        "trajectories": max(8, worker.data.stages[-1] // 4),
        "retain_weight": 1.0,  # what is kept is measured, whether it was trained or not
    }
    buffer = FDUnlearner(worker.pipe, worker.pipeline_kwargs, False, **options).record(
        concept_list
    )
    unlearn, retain = buffer.entries("unlearn"), buffer.entries("retain")
    anchor_preds, retain_preds = buffer.predictions(unlearn), buffer.predictions(retain)
    scale = (ask(worker.model, buffer, unlearn) - anchor_preds).square().mean().item()

    def by_predictions(pipe: Any) -> tuple[float, float]:
        model = getattr(pipe, worker.component)
        left = (ask(model, buffer, unlearn) - anchor_preds).square().mean().item() / scale
        drift = (ask(model, buffer, retain) - retain_preds).square().mean().item() / scale
        return min(max(1 - left, 0.0), 1.0), min(max(1 - drift, 0.0), 1.0)

    return by_predictions


def _checked_fs(fs: Sequence[str], config: TrainConfig) -> list[str]:
    for f in fs:
        if not isinstance(f, str):
            raise TypeError(f"fs must be names of divergences, got {type(f).__name__}")
        divergence(f)
        if config.critic:
            conjugate(f)
    return list(dict.fromkeys(fs))


def _cache_key(
    worker: FDUnlearner,
    concept_list: Sequence[Concept],
    strengths: Sequence[float],
    measure: Measure | None,
) -> dict[str, Any]:
    """Everything that the results of a seed depend on, but for f."""
    key = {
        "concepts": [vars(concept) for concept in concept_list],
        "options": [vars(worker.config), vars(worker.data), vars(worker.performance)],
        "pipeline_kwargs": worker.pipeline_kwargs,
        **pipe_facts(worker.pipe),
        "strengths": list(strengths),
        "measure": "predictions" if measure is None else function_name(measure),
    }
    return as_json(key)


class _ResultCache:
    """Results as JSON files, named by `key` and the f; that of None is of the pipe before."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else writable_folder(folder)
        self.key: dict[str, Any] = {}

    def _path(self, folder: Path, f: str | None) -> Path:
        text = json.dumps({**self.key, "f": f}, sort_keys=True)
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def get(self, f: str | None) -> Any:
        if self.folder is None or not (path := self._path(self.folder, f)).exists():
            return None
        return read_json(path)["result"]

    def put(self, f: str | None, result: Any) -> Any:
        if self.folder is not None:
            content = {"key": {**self.key, "f": f}, "result": result}
            write_json(self._path(self.folder, f), content)
        return result
