"""Study of what is retained and of gradient surgery, on the embedded model.

    python -m examples.studies.options --output runs/options.jsonl

trains dog -> cat and blob -> noto with every line of `VARIANTS` and three seeds, under hellinger;
first from zero (`init="lora"`), where there is much to be lost, then the two ends again from the
closed form. `--seeds 1` is faster. An interrupted study goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.utils.statistics import estimate

from .bench import ALL, RUNS, Results, concept, judged, line, over

PAIRS = (("dog", "cat"), ("blob", "noto"))
ZERO = {"init": "lora"}
VARIANTS: tuple[dict[str, Any], ...] = (
    {**ZERO, "retain_weight": 0.0},
    {**ZERO},
    {**ZERO, "surgery": True},
    {"retain_weight": 0.0},
    {},
    {"surgery": True},
)
COLUMNS = ("target", "settings", "UA", "IRA", "CRA", "UA more", "kept more", "record s", "train s")


class Recordings:
    """The buffer of the last target and seed, since most variants share one."""

    def __init__(self) -> None:
        self.key: Any = None
        self.buffer: ReplayBuffer | None = None
        self.seconds = 0.0

    def get(self, worker: FDUnlearner, target: str, anchor: str) -> ReplayBuffer:
        """Recorded now, or before."""
        key = (target, worker.config.seed, worker.config.retain_weight)
        if self.buffer is None or key != self.key:
            started = time.monotonic()
            options = {**ALL, "seed": key[1], "retain_weight": key[2]}
            full = FDUnlearner(worker.pipe, RUNS, progress=False, **options)
            self.buffer, self.key = full.record(concept(target, anchor)), key
            self.seconds = time.monotonic() - started
        return self.buffer


def study(
    target: str, anchor: str, variant: dict[str, Any], seed: int, recordings: Recordings
) -> dict[str, Any]:
    """One training and its scores."""
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, **{**ALL, **variant})
    buffer = recordings.get(worker, target, anchor)
    worker.unlearn(concept(target, anchor), f="hellinger", buffer=buffer)
    result = judged(pipe, target).as_dict()
    train = worker.recipe["seconds"]["train"]
    return {
        "target": target,
        "variant": json.dumps(variant),
        "seed": seed,
        "record": recordings.seconds,
        "train": train,
        **result,
    }


def kept(row: dict[str, Any]) -> float:
    """What is left of the rest."""
    return (row["ira"] + row["cra"]) / 2


def differences(rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> list[Any]:
    """Erased and kept more than without the options, paired by seed."""
    same = {row["seed"]: row for row in plain}
    pairs = [(row, same[row["seed"]]) for row in rows if row["seed"] in same]
    if not pairs or rows == plain:
        return ["", ""]
    return [
        estimate([row["ua"] - other["ua"] for row, other in pairs]),
        estimate([kept(row) - kept(other) for row, other in pairs]),
    ]


def table(results: Results) -> str:
    """Means over seeds with 95 % confidence intervals."""
    lines = [line(COLUMNS), "|---" * len(COLUMNS) + "|"]
    for target, _ in PAIRS:
        for variant in VARIANTS:
            start = {k: v for k, v in variant.items() if k == "init"}
            rows, plain = (
                [r for r in results.rows if (r["target"], r["variant"]) == (target, key)]
                for key in (json.dumps(variant), json.dumps(start))
            )
            if rows:
                name = ", ".join(f"{k}={v}" for k, v in variant.items()) or "defaults"
                figures = [over(rows, k) for k in ("ua", "ira", "cra")]
                costs = [f"{over(rows, k).mean:.0f}" for k in ("record", "train")]
                more = differences(rows, plain)
                lines.append(line([target, name, *figures, *more, *costs]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/options.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 3,
) -> None:
    """Train and judge what is not in the file yet."""
    results = Results(output)
    recordings = Recordings()
    for seed in range(seeds):
        for target, anchor in PAIRS:
            for variant in sorted(VARIANTS, key=lambda options: "retain_weight" in options):
                key = {"target": target, "variant": json.dumps(variant), "seed": seed}
                if results.find(**key) is None:
                    results.add(study(target, anchor, variant, seed, recordings))
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
