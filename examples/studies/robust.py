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
from typing import Annotated, Any

import typer

from diffusers_fdu import Concept, FDUnlearner, NegativeGuidance, Robust
from diffusers_fdu.emoji import load_emoji_pipeline
from diffusers_fdu.evaluation.attacks import ConceptInversion, GreedySearch

from .bench import RUNS, Results, concept, judged, line, over, scene

PAIRS = (("dog", "cat"), ("banana", "carrot"), ("blob", "noto"))
ROOM: dict[str, Any] = {"rank": 64, "steps": 200, "robust": Robust(every=10, steps=40)}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "robust": {"robust": True},
    "robust, rank 64": ROOM,
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
                worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, **options)
                started = time.monotonic()
                worker.unlearn(asked(method, target, anchor))
                seconds = time.monotonic() - started
                found = judged(pipe, target)
                under = scene(pipe, target, adapter_name=worker.adapter_name)
                shares = {}
                for name, attack in ATTACKS.items():
                    hits = attack(under, seed).hits
                    shares[name] = sum(hits) / len(hits)
                results.add({**key, "seconds": seconds, **found.as_dict(), **shares})


def table(results: Results) -> str:
    """Means over targets and seeds."""
    columns = ("ua", "ira", "cra", *ATTACKS, "seconds")
    lines = [line(["method", "adapters", *columns]), "|---" * (2 + len(columns)) + "|"]
    for method in METHODS:
        rows = [row for row in results.rows if row["method"] == method]
        if rows:
            lines.append(line([method, len(rows), *(over(rows, name) for name in columns)]))
    return "\n".join(lines)


def by_target(results: Results) -> str:
    """Attack success of each target, mean over seeds."""
    lines = [line(["target", *(f"{m}, {a}" for m in METHODS for a in ATTACKS)])]
    lines.append("|---" * (1 + len(METHODS) * len(ATTACKS)) + "|")
    for target, _ in PAIRS:
        cells = []
        for method in METHODS:
            own = [r for r in results.rows if (r["target"], r["method"]) == (target, method)]
            for name in ATTACKS:
                cells.append(f"{sum(r[name] for r in own) / len(own):.2f}" if own else "")
        lines.append(line([target, *cells]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/robust.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each method and target.")] = 3,
    target: Annotated[list[str] | None, typer.Option(help="This one alone; repeatable.")] = None,
) -> None:
    """Measure, and print the tables."""
    results = Results(output)
    measure(results, seeds, target or [name for name, _ in PAIRS])
    print(table(results))
    print()
    print(by_target(results))


if __name__ == "__main__":
    typer.run(main)
