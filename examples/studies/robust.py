"""Study of robust training: what does it buy against attacks, and what does it cost?

    python -m examples.studies.robust --output runs/robust.jsonl

Two concepts and a style, three seeds, with the default f: as it is by default, with robust=True,
with robust training that has more room, with negative guidance in place of the anchor, and with
that and robust=True. Each adapter is attacked with concept inversion and greedy prompt search, one
seed of the attack for each seed of the training, 16 pictures each. An interrupted study goes on;
`--target dog --seeds 1` is a part of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from diffusers_fdu import Concept, FDUnlearner, NegativeGuidance, Robust
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.evaluation.attacks.search import ConceptInversion, GreedySearch

from .bench import ALL, RUNS, Results, concept, judged, line, scene

PAIRS = (("dog", "cat"), ("banana", "carrot"), ("blob", "noto"))
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "robust": {"robust": True},
    "robust, rank 64": {"rank": 64, "steps": 200, "robust": Robust(every=10, steps=40)},
    "negative": {},
    "negative, robust": {"robust": True},
}
ATTACKS = {"inversion": ConceptInversion(), "greedy": GreedySearch()}


def asked(method: str, target: str, anchor: str) -> Concept:
    """What a method unlearns."""
    own = concept(target, anchor)
    return replace(own, anchor=NegativeGuidance(1.0)) if "negative" in method else own


def measure(results: Results, seeds: int, targets: Sequence[str]) -> None:
    """Train, judge and attack what is not in the file yet."""
    for seed in range(seeds):
        for target, anchor in [pair for pair in PAIRS if pair[0] in targets]:
            for method, options in METHODS.items():
                key = {"target": target, "method": method, "seed": seed}
                if results.find(**key) is not None:
                    continue
                pipe = load_emoji_pipeline()
                worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, **ALL, **options)
                started = time.monotonic()
                worker.unlearn(asked(method, target, anchor))
                seconds = time.monotonic() - started
                found = judged(pipe, target)
                under = scene(pipe, target, adapter_name=worker.adapter_name)
                shares = {}
                for name, attack in ATTACKS.items():
                    hits = attack(under, seed).hits
                    shares[name] = sum(hits) / len(hits)
                results.add({**key, "seconds": seconds, **found._asdict(), **shares})


def table(results: Results) -> str:
    """Means over the trainings of each target and method."""
    columns = ("ua", "ira", "cra", *ATTACKS, "seconds")
    lines = [line(["target", "method", "trainings", *columns])]
    lines.append("|---" * (3 + len(columns)) + "|")
    for target, _ in PAIRS:
        for method in METHODS:
            rows = [r for r in results.rows if (r["target"], r["method"]) == (target, method)]
            if rows:
                means = {name: mean(row[name] for row in rows) for name in columns}
                seconds = f"{means.pop('seconds'):.0f}"
                cells = [f"{value:.2f}" for value in means.values()]
                lines.append(line([target, method, len(rows), *cells, seconds]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/robust.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each method and target.")] = 3,
    target: Annotated[list[str] | None, typer.Option(help="This one alone; repeatable.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Measure nothing.")] = False,
) -> None:
    """Measure, and print the table."""
    results = Results(output)
    if not only_print:
        measure(results, seeds, target or [name for name, _ in PAIRS])
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
