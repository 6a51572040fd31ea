"""Side by side on the embedded model: this library and earlier methods.

    python -m examples.baselines.table --output runs/baselines.jsonl --seeds 3

Six targets (four objects, two styles), three seeds; every method as it is by default. UA, IRA and
CRA by the embedded judge, FID of the others' pictures before against after by the embedded CLIP,
the success of a concept inversion of 40 steps on 16 pictures. An interrupted table goes on. To use
both cores start it twice, with `--lane 0/2` and `--lane 1/2` and files of their own, and print the
table of both with `--output` given twice and `--print`. `--quick` is one target, one seed, five
methods and no attack; without `--seeds` it is one seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.emoji import (
    CONCEPTS,
    Verdict,
    caption,
    cells,
    draw,
    load_emoji_clip,
    load_emoji_judge,
    load_emoji_pipeline,
    scores,
)
from diffusers_fdu.evaluation.attacks import ConceptInversion
from diffusers_fdu.evaluation.clip import ClipScorer
from diffusers_fdu.evaluation.distances import fid
from diffusers_fdu.intervals import estimate
from diffusers_fdu.inversion import Inversion
from diffusers_fdu.replay import ReplayBuffer

from ..studies.bench import DRAW, OTHER, OWN, RUNS, STYLE, Results, concept, line
from ..studies.robust import scene
from . import concept_ablation, esd, fdmu_full, uce
from .common import HALF

PAIRS = (
    ("dog", "cat"),
    ("banana", "carrot"),
    ("rocket", "car"),
    ("penguin", "owl"),
    ("blob", "noto"),
    ("fluent", "twitter"),
)
QUICK = (("dog", "cat"),)
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
QUICK_METHODS = ("ours, hellinger", *BASELINES)
ATTACK = ConceptInversion(Inversion(steps=40), pictures=16)


class Table:
    """Trains and measures what is not in the file yet."""

    def __init__(self, results: Results, attacks: bool = True) -> None:
        self.results, self.attacks = results, attacks
        self.clip = ClipScorer(*load_emoji_clip())
        self.judge = load_emoji_judge()
        self._buffers: dict[tuple[str, int], tuple[ReplayBuffer, float]] = {}
        self._before: dict[str, torch.Tensor] = {}

    def run(self, pair: Sequence[str], method: str, seed: int) -> None:
        """One row."""
        key = {"target": pair[0], "method": method, "seed": seed}
        if self.results.find(**key) is not None:
            return
        pipe = load_emoji_pipeline()
        if method in BASELINES:
            cost = BASELINES[method](pipe, concept(*pair), seed)
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
        if self.attacks:
            hits = ATTACK(scene(pipe, pair[0], **where), seed).hits
            figures["attack"] = sum(hits) / len(hits)
        self.results.add({**key, **facts, **figures})

    def _ours(
        self, pipe: Any, pair: Sequence[str], method: str, seed: int
    ) -> tuple[FDUnlearner, float]:
        estimator = "variational" if "variational" in method else "exact"
        worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, estimator=estimator)
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

    def figures(self, pipe: Any, target: str) -> dict[str, float]:
        """UA, IRA, CRA, their harmonic mean, and FID of the others."""
        own = [cell for cell in cells() if target in cell]
        rest = [cell for cell in cells() if target not in cell]
        count = OWN if target in CONCEPTS else STYLE
        asked = [cell for cell in own for _ in range(count)] + rest
        seeds = [100 + i for _ in own for i in range(count)] + [100] * (OTHER * len(rest))
        images = draw(pipe, [caption(*cell) for cell in asked], seeds, **DRAW)
        verdicts = [Verdict(a, s) for a, s in zip(asked, self.judge(images), strict=True)]
        found = scores(verdicts, target)
        values = (found.ua, found.ira, found.cra)
        mean = 3 / sum(1 / value for value in values) if all(values) else 0.0
        after = self.clip.image_features(images[-len(rest) :])
        distance = fid(self._originals(target, rest), after)
        return {
            **dict(zip(("ua", "ira", "cra"), values, strict=True)),
            "harmonic": mean,
            "fid": distance,
        }

    def _originals(self, target: str, rest: Sequence[Any]) -> torch.Tensor:
        """Features of the others' pictures as the original model draws them."""
        if target not in self._before:
            prompts = [caption(*cell) for cell in rest]
            images = draw(load_emoji_pipeline(), prompts, [100] * len(rest), **DRAW)
            self._before[target] = self.clip.image_features(images)
        return self._before[target]


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """Means with 95 % intervals over the targets' means, best harmonic mean first."""
    columns = ("harmonic", "ua", "ira", "cra", "fid", "attack")
    head = ["method", "rows", "harmonic mean", "UA", "IRA", "CRA", "FID", "attack", "s", "KB"]
    lines = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        targets = list(dict.fromkeys(row["target"] for row in own))

        def means(name: str, own: Sequence = own, targets: Sequence = targets) -> list[float]:
            found = []
            for target in targets:
                values = [r[name] for r in own if r["target"] == target and name in r]
                found += [sum(values) / len(values)] if values else []
            return found

        cells = [estimate(means(name)) if means(name) else "" for name in columns]
        seconds, size = (sum(means(name)) / len(targets) for name in ("seconds", "bytes"))
        text = line([method, len(own), *cells, f"{seconds:.1f}", f"{size / 1024:.0f}"])
        lines.append((sum(means("harmonic")) / len(targets), text))
    ordered = [text for _, text in sorted(lines, reverse=True)]
    return "\n".join([line(head), "|---" * len(head) + "|", *ordered])


def by_target(rows: Sequence[dict[str, Any]]) -> str:
    """Harmonic mean of each target, mean over seeds."""
    targets = [target for target, _ in PAIRS if any(r["target"] == target for r in rows)]
    lines = [line(["harmonic mean", *targets]), "|---" * (1 + len(targets)) + "|"]
    for method in METHODS:
        cells = []
        for target in targets:
            own = [r["harmonic"] for r in rows if (r["method"], r["target"]) == (method, target)]
            cells.append(f"{sum(own) / len(own):.3f}" if own else "")
        if any(cells):
            lines.append(line([method, *cells]))
    return "\n".join(lines)


def main(
    output: Annotated[list[Path], typer.Option(help="JSON lines; the first is written to.")],
    seeds: Annotated[int, typer.Option(help="Trainings of each method and target.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="This one alone; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cells, in minutes.")] = False,
    lane: Annotated[str, typer.Option(help="i/n: every n-th pair of target and seed.")] = "0/1",
    only_print: Annotated[bool, typer.Option("--print", help="Measure nothing.")] = False,
) -> None:
    """Measure, and print the tables."""
    results = Results(output[0])
    methods = method or (QUICK_METHODS if quick else METHODS)
    for name in methods:
        if name not in METHODS:
            raise typer.BadParameter(f"unknown method {name!r}: choose {', '.join(METHODS)}")
    own, count = (int(part) for part in lane.split("/"))
    jobs = [(pair, seed) for seed in range(seeds) for pair in (QUICK if quick else PAIRS)]
    if not only_print:
        table = Table(results, attacks=not quick)
        for pair, seed in jobs[own::count]:
            for name in methods:
                table.run(pair, name, seed)
    rows = [row for path in output for row in Results(path).rows]
    print(printed(rows))
    print()
    print(by_target(rows))


if __name__ == "__main__":
    typer.run(main)
