"""Study of anchors: what takes the target's place, on the embedded model.

    python -m examples.studies.anchors --output runs/anchors.jsonl

unlearns dog with the defaults under hellinger for every anchor of `ANCHORS`, three seeds, and says
what the dog's 32 pictures are judged to be instead. An interrupted study goes on.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner, NegativeGuidance
from diffusers_fdu.data.concepts import Anchor
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import cells, judge_cells

from .bench import ALL, DRAW, RUNS, Results, judged, line, over

TARGET = "dog"
ANCHORS: dict[str, Anchor] = {
    "cat (near)": "cat",
    "car (far)": "car",
    "animal (not in the vocabulary)": "animal",
    "a red apple (several words)": "a red apple",
    "none": None,
    "NegativeGuidance(0)": NegativeGuidance(0.0),
    "NegativeGuidance(0.5)": NegativeGuidance(0.5),
    "NegativeGuidance(1)": NegativeGuidance(1.0),
    "NegativeGuidance(2)": NegativeGuidance(2.0),
}
COLUMNS = ("anchor", "UA", "IRA", "CRA", "distance left", "drawn instead, most often")


def study(name: str, seed: int) -> dict[str, Any]:
    """One training and its scores."""
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, RUNS, progress=False, seed=seed, **ALL)
    worker.unlearn(TARGET, ANCHORS[name], f="hellinger")
    own = cells(TARGET)
    seen = judge_cells(pipe, load_emoji_judge(), own, range(200, 208), **DRAW)
    left = sum(record.distance for record in worker.history[-5:]) / 5
    return {
        "anchor": name,
        "seed": seed,
        "left": left / worker.recipe["distance"]["first"],
        "seen": [verdict.seen[0] for verdict in seen],
        **judged(pipe, TARGET)._asdict(),
    }


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/anchors.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings with each anchor.")] = 3,
) -> None:
    """Measure what is not in the file yet, and print the table."""
    results = Results(output)
    print(line(COLUMNS) + "\n" + "|---" * len(COLUMNS) + "|")
    for name in ANCHORS:
        for seed in range(seeds):
            if results.find(anchor=name, seed=seed) is None:
                results.add(study(name, seed))
        rows = [r for r in results.rows if r["anchor"] == name and r["seed"] < seeds]
        counts = Counter(concept for r in rows for concept in r["seen"])
        total = sum(counts.values())
        most = ", ".join(f"{c} {n / total:.0%}" for c, n in counts.most_common(3))
        figures = [over(rows, k) for k in ("ua", "ira", "cra", "left")]
        print(line([name, *figures, most]), flush=True)


if __name__ == "__main__":
    typer.run(main)
