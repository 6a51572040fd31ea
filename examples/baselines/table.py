"""Side by side on the embedded model: this library and earlier methods.

    python -m examples.baselines.table --output runs/baselines.jsonl --seeds 3

Six targets (four objects, two styles), one seed unless `--seeds` says more; every method as it is
by default, and with `--variational` the six variational divergences, too. UA, IRA and CRA by the
embedded judge, FID of the others' pictures before against after by the embedded CLIP, the success
of a concept inversion of 40 steps on 16 pictures. An interrupted table goes on.

To use two cores start it twice, with `--lane 0/2` and `--lane 1/2`: each writes a file of its own
beside `--output`, and a last call without a lane does what is missing and prints all. `--quick`
shows that everything runs: two targets, one seed, six methods, a quarter of the steps and pictures
of each training, a fifth of the pictures judged, and no attack. Its figures rank nothing, and are
kept apart from the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Annotated, Any

import torch
import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.emoji.loading import load_emoji_clip, load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import CONCEPTS, STYLES, caption
from diffusers_fdu.evaluation.attacks.search import ConceptInversion
from diffusers_fdu.evaluation.emoji import Cell, Verdict, cells, draw, scores
from diffusers_fdu.evaluation.metrics.clip import ClipScorer
from diffusers_fdu.evaluation.metrics.distances import fid
from diffusers_fdu.training.inversion import Inversion

from ..studies.bench import ALL, RUNS, Results, concept, scene
from . import concept_ablation, esd, fdmu_full, uce
from .common import DRAW_STEPS, HALF
from .printing import ahead, by_target, printed

PAIRS = (
    ("dog", "cat"),
    ("banana", "carrot"),
    ("rocket", "car"),
    ("penguin", "owl"),
    ("blob", "noto"),
    ("fluent", "twitter"),
)
QUICK = (("dog", "cat"), ("blob", "noto"))
EXACT = ("kl", "hellinger", "chi2", "js", "tv")
CRITIC = ("kl", "reverse_kl", "hellinger", "js", "chi2", "tv")
BASELINES: dict[str, Callable[..., Any]] = {
    "concept ablation": concept_ablation.forget,
    "ESD-x": esd.forget,
    "UCE": uce.forget,
    "f-DMU, full K and V": fdmu_full.forget,
}
OURS = tuple(f"ours, {f}" for f in EXACT)
VARIATIONAL = tuple(f"ours, variational {f}" for f in CRITIC)
METHODS = (*OURS, *VARIATIONAL, *BASELINES)
MAIN_METHODS = (*OURS, *BASELINES)
KEY = ("target", "method", "seed", "quick")
QUICK_METHODS = ("ours, kl", "ours, hellinger", *BASELINES)
DRAWING = {"num_inference_steps": DRAW_STEPS}
ATTACK = ConceptInversion(Inversion(steps=40), pictures=16)
QUICK_BASELINES: dict[str, dict[str, int]] = {
    "concept ablation": {"steps": 25, "pictures": 24},
    "ESD-x": {"steps": 15},
    "UCE": {},
    "f-DMU, full K and V": {"steps": 25, "pictures": 24},
}
QUICK_OURS = {"steps": 25, "trajectories": 24}
EVERY = 5  # of the others' cells when it is quick; not a multiple of the number of styles


class Table:
    """Trains and measures what is not in the file yet.

    Args:
        results: rows so far.
        quick: train and draw less, and do not attack.
    """

    def __init__(self, results: Results, quick: bool = False) -> None:
        self.results, self.quick = results, quick
        self.clip = ClipScorer(*load_emoji_clip())
        self.judge = load_emoji_judge()
        self._buffers: dict[tuple[str, int], tuple[ReplayBuffer, float]] = {}
        self._before: dict[str, torch.Tensor] = {}

    def run(self, pair: Sequence[str], method: str, seed: int) -> None:
        """One row."""
        key = {"target": pair[0], "method": method, "seed": seed, "quick": self.quick}
        if self.results.find(**key) is not None:
            return
        pipe = load_emoji_pipeline()
        if method in BASELINES:
            less = QUICK_BASELINES[method] if self.quick else {}
            cost = BASELINES[method](pipe, concept(*pair), seed, **less)
            where = {"reference": load_emoji_pipeline()}
            facts = {"seconds": cost.seconds, "steps": cost.steps, "bytes": cost.bytes}
        else:
            worker, recorded = self._ours(pipe, pair, method, seed)
            where = {"adapter_name": worker.adapter_name}
            parameters = [p for n, p in worker.model.named_parameters() if "lora_" in n]
            facts = {
                "seconds": recorded + worker.recipe["seconds"]["train"],
                "steps": len(worker.history),
                "bytes": HALF * sum(p.numel() for p in parameters),
            }
        figures = self.figures(pipe, pair[0])
        if not self.quick:
            hits = ATTACK(scene(pipe, pair[0], DRAWING, **where), seed).hits
            figures["attack"] = sum(hits) / len(hits)
        self.results.add({**key, **facts, **figures})

    def _ours(
        self, pipe: Any, pair: Sequence[str], method: str, seed: int
    ) -> tuple[FDUnlearner, float]:
        estimator = "variational" if "variational" in method else "exact"
        less: dict[str, Any] = QUICK_OURS if self.quick else ALL
        worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, estimator=estimator, **less)
        place = pair[0], seed
        own = concept(*pair)
        if place not in self._buffers:
            self._buffers.clear()
            started = time.monotonic()
            recorded = worker.record(own)
            self._buffers[place] = recorded, time.monotonic() - started
        buffer, seconds = self._buffers[place]
        worker.unlearn(own, f=method.split()[-1], buffer=buffer)
        return worker, seconds

    def asked(self, target: str) -> tuple[list[Cell], int, list[Cell]]:
        """The target's cells, the pictures of each, and the others' cells, one picture each."""
        own = cells(target)
        rest = [cell for cell in cells() if target not in cell]
        count = 8 if target in CONCEPTS else 2
        if self.quick:
            return own[::EVERY] if target in STYLES else own, count // 2 or 1, rest[::EVERY]
        return own, count, rest

    def figures(self, pipe: Any, target: str) -> dict[str, float]:
        """UA, IRA, CRA, their harmonic mean, and FID of the others."""
        own, count, rest = self.asked(target)
        asked = [cell for cell in own for _ in range(count)] + rest
        seeds = [100 + i for _ in own for i in range(count)] + [100] * len(rest)
        images = draw(pipe, [caption(*cell) for cell in asked], seeds, **DRAWING)
        verdicts = [Verdict(a, s) for a, s in zip(asked, self.judge(images), strict=True)]
        found = scores(verdicts, target)
        values = (found.ua, found.ira, found.cra)
        after = self.clip.image_features(images[-len(rest) :])
        distance = fid(self._originals(target, rest), after)
        return {
            **dict(zip(("ua", "ira", "cra"), values, strict=True)),
            "harmonic": harmonic_mean(values),
            "fid": distance,
            "pictures": len(images),
        }

    def _originals(self, target: str, rest: Sequence[Any]) -> torch.Tensor:
        """Features of the others' pictures as the original model draws them."""
        if target not in self._before:
            prompts = [caption(*cell) for cell in rest]
            images = draw(load_emoji_pipeline(), prompts, [100] * len(rest), **DRAWING)
            self._before[target] = self.clip.image_features(images)
        return self._before[target]


def lanes(output: Path) -> list[Path]:
    """The files of all lanes beside one, and that one first."""
    return [output, *sorted(output.parent.glob(f"{output.stem}.lane*{output.suffix}"))]


def gathered(output: Path, lane: tuple[int, int]) -> Results:
    """Results that know the rows of all files and write to the lane's own.

    Args:
        output: the file without a lane.
        lane: which one, of how many; (0, 1) writes to `output` itself.
    """
    own, count = lane
    path = output if count == 1 else output.with_suffix(f".lane{own}of{count}{output.suffix}")
    results = Results(path)
    for other in lanes(output):
        if other != path:
            for row in Results(other).rows:
                if results.find(**{name: row[name] for name in KEY}) is None:
                    results.rows.append(row)
    return results


def parsed(lane: str) -> tuple[int, int]:
    """A lane, such as 0/2.

    Raises:
        BadParameter: if it is none.
    """
    own, _, count = lane.partition("/")
    if not (own.isdecimal() and count.isdecimal() and int(own) < int(count)):
        raise typer.BadParameter(f"lane {lane!r} is not i/n with i below n, such as 0/2")
    return int(own), int(count)


def usual(variational: bool, quick: bool) -> tuple[str, ...]:
    """The methods that are measured unless some are named."""
    if quick:
        return QUICK_METHODS
    return METHODS if variational else MAIN_METHODS


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/baselines.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each method and target.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="This one alone; repeatable.")] = None,
    variational: Annotated[
        bool, typer.Option("--variational", help="The variational divergences, too.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="See that it runs, in minutes.")] = False,
    lane: Annotated[str, typer.Option(help="i/n: every n-th pair of target and seed.")] = "0/1",
    only_print: Annotated[bool, typer.Option("--print", help="Measure nothing.")] = False,
) -> None:
    """Measure, and print the tables."""
    own, count = parsed(lane)
    results = gathered(output, (own, count))
    methods = method or usual(variational, quick)
    for name in methods:
        if name not in METHODS:
            raise typer.BadParameter(f"unknown method {name!r}: choose {', '.join(METHODS)}")
    numbers = range(1 if quick else seeds)
    jobs = [(pair, seed) for seed in numbers for pair in (QUICK if quick else PAIRS)]
    if not only_print:
        table = Table(results, quick)
        for pair, seed in jobs[own::count]:
            for name in methods:
                table.run(pair, name, seed)
    if count == 1 or only_print:
        rows = [row for row in results.rows if row["quick"] == quick]
        print(printed(rows), by_target(rows), ahead(rows, "ours, "), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
