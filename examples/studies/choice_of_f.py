"""Study of the choice of f: at matched erasure, which divergence keeps most?

    python -m examples.studies.choice_of_f --output runs/choice.jsonl

Three concepts and two styles, three seeds, from zero (`init="lora"`, since the closed form leaves
f little to decide), at most 60 steps. Every method first gets its own learning rate: of `RATES`
times the default, the one with the best mean harmonic mean of UA and (IRA + CRA) / 2 over the
pairs, with seed 0. Then every adapter is measured at each of `STRENGTHS`; "kept at 0.9" is
preservation where the erasure passes 0.9, interpolated between strengths. Differences from kl are
paired by target and seed. An interrupted study goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner, adapters
from diffusers_fdu.config import RATE_TIMES_WIDTH
from diffusers_fdu.emoji import load_emoji_pipeline
from diffusers_fdu.intervals import estimate
from diffusers_fdu.replay import ReplayBuffer

from .bench import RUNS, Results, concept, judged, line, over

PAIRS = (
    ("dog", "cat"),
    ("banana", "carrot"),
    ("rocket", "car"),
    ("blob", "noto"),
    ("fluent", "twitter"),
)
METHODS = ("kl", "hellinger", "chi2", "js", "tv", "variational kl", "variational hellinger")
RATES = (0.5, 1.0, 2.0)
STRENGTHS = (0.4, 0.6, 0.8, 1.0)
STEPS, MATCHED = 60, 0.9
BASE_RATE = RATE_TIMES_WIDTH / 128  # the embedded model's text is 128 wide


def trained(buffer: ReplayBuffer, pair: Sequence[str], method: str, rate: float, seed: int) -> Any:
    """An unlearner with its adapter on a fresh pipe."""
    estimator = "variational" if method.startswith("variational") else "exact"
    worker = FDUnlearner(
        load_emoji_pipeline(),
        RUNS,
        progress=False,
        seed=seed,
        init="lora",
        steps=STEPS,
        early_stop=0.0,
        estimator=estimator,
        learning_rate=rate * BASE_RATE,
    )
    worker.unlearn(concept(*pair), f=method.split()[-1], buffer=buffer)
    return worker


def scored(worker: Any, target: str, strength: float = 1.0) -> dict[str, float]:
    """Erased and kept at one strength."""
    with adapters.scaled(worker.model, worker.adapter_name, strength):
        found = judged(worker.pipe, target)
    return {"erased": found.ua, "kept": (found.ira + found.cra) / 2}


def kept_at(rows: Sequence[dict[str, Any]], erased: float = MATCHED) -> float | None:
    """Preservation where the erasure passes a level, from rows of growing strength."""
    rows = sorted(rows, key=lambda row: row["strength"])
    if rows[0]["erased"] >= erased:
        return rows[0]["kept"]
    for low, high in zip(rows, rows[1:], strict=False):
        if high["erased"] >= erased:
            share = (erased - low["erased"]) / (high["erased"] - low["erased"])
            return low["kept"] + share * (high["kept"] - low["kept"])
    return None


def harmonic(row: dict[str, Any]) -> float:
    """Of erasure and preservation."""
    a, b = row["erased"], row["kept"]
    return 2 * a * b / (a + b) if a + b else 0.0


def best_rates(results: Results) -> dict[str, float]:
    """Of each method, the rate with the best mean over the pairs."""
    found = {}
    for method in METHODS:
        means = {}
        for rate in RATES:
            rows = [
                r
                for r in results.rows
                if (r["method"], r["rate"], r["seed"], r["strength"]) == (method, rate, 0, 1.0)
            ]
            means[rate] = sum(map(harmonic, rows)) / len(rows)
        found[method] = max(means, key=lambda rate: means[rate])
    return found


def measure(results: Results, seeds: int) -> None:
    """Train and judge what is not in the file yet."""
    buffers: dict[tuple[str, int], ReplayBuffer] = {}

    def run(pair: Sequence[str], method: str, rate: float, seed: int, strengths: Sequence) -> None:
        key = {"target": pair[0], "method": method, "rate": rate, "seed": seed}
        missing = [w for w in strengths if results.find(**key, strength=w) is None]
        if not missing:
            return
        if (pair[0], seed) not in buffers:
            buffers.clear()
            recorder = FDUnlearner(load_emoji_pipeline(), RUNS, progress=False, seed=seed)
            buffers[pair[0], seed] = recorder.record(concept(*pair))
        worker = trained(buffers[pair[0], seed], pair, method, rate, seed)
        for strength in missing:
            figures = scored(worker, pair[0], strength)
            seconds = worker.recipe["seconds"]["train"]
            results.add({**key, "strength": strength, "seconds": seconds, **figures})

    for pair in PAIRS:
        for method in METHODS:
            for rate in RATES:
                run(pair, method, rate, 0, (1.0,))
    rates = best_rates(results)
    for seed in range(seeds):
        for pair in PAIRS:
            for method in METHODS:
                run(pair, method, rates[method], seed, STRENGTHS)


def table(results: Results, seeds: int) -> str:
    """Means over targets and seeds with 95 % confidence intervals."""
    rates = best_rates(results)
    columns = ("method", "rate", "erased", "kept", "kept at 0.9", "minus kl", "train s")
    lines = [line(columns), "|---" * len(columns) + "|"]
    matched: dict[str, dict[tuple[str, int], float | None]] = {}
    for method in METHODS:
        rows = [r for r in results.rows if (r["method"], r["rate"]) == (method, rates[method])]
        rows = [r for r in rows if r["seed"] < seeds]
        matched[method] = {
            (target, seed): kept_at(
                [r for r in rows if (r["target"], r["seed"]) == (target, seed)]
            )
            for target, _ in PAIRS
            for seed in range(seeds)
        }
        full = [r for r in rows if r["strength"] == 1.0]
        reached = [v for v in matched[method].values() if v is not None]
        differences = [
            v - base
            for key, v in matched[method].items()
            if v is not None and (base := matched["kl"][key]) is not None
        ]
        at = f"{estimate(reached)} ({len(reached)} of {len(matched[method])})" if reached else ""
        minus = f"{estimate(differences)}" if differences and method != "kl" else ""
        figures = [over(full, "erased"), over(full, "kept"), at, minus]
        lines.append(line([method, rates[method], *figures, f"{over(full, 'seconds').mean:.0f}"]))
    return "\n".join(lines)


def by_target(results: Results, seeds: int) -> str:
    """Preservation at matched erasure for each target, means over seeds."""
    rates = best_rates(results)
    targets = [target for target, _ in PAIRS]
    lines = [line(["method", *targets]), "|---" * (1 + len(targets)) + "|"]
    for method in METHODS:
        cells = []
        for target in targets:
            found = []
            for seed in range(seeds):
                rows = [
                    r
                    for r in results.rows
                    if (r["method"], r["rate"], r["target"], r["seed"])
                    == (method, rates[method], target, seed)
                ]
                found.append(kept_at(rows))
            reached = [v for v in found if v is not None]
            cells.append(f"{sum(reached) / len(reached):.3f}" if reached else "not reached")
        lines.append(line([method, *cells]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/choice.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each method and target.")] = 3,
) -> None:
    """Measure, and print the tables."""
    results = Results(output)
    measure(results, seeds)
    print(table(results, seeds))
    print()
    print(by_target(results, seeds))


if __name__ == "__main__":
    typer.run(main)
