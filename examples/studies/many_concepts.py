"""Study of many concepts in one adapter: erasure, preservation and time against their number.

    python -m examples.studies.many_concepts --output runs/many.jsonl

erases the first 1, 2, 4, 8, 16 of `PAIRS` from the embedded model with the defaults, and judges
every cell. UA is the mean over the erased concepts, IRA the share of the other concepts' pictures
that are judged right, CRA the share of theirs whose style is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import accuracy, cells, judge_cells

from .bench import ALL, DRAW, RUNS, Results, line

PAIRS = (
    ("dog", "cat"),
    ("banana", "carrot"),
    ("rocket", "car"),
    ("sunflower", "cactus"),
    ("pig", "cow"),
    ("pizza", "hamburger"),
    ("penguin", "owl"),
    ("turtle", "frog"),
    ("apple", "strawberry"),
    ("guitar", "robot"),
    ("tiger", "fox"),
    ("horse", "rabbit"),
    ("doughnut", "watermelon"),
    ("sailboat", "mushroom"),
    ("octopus", "panda"),
    ("pineapple", "monkey"),
)
COUNTS = (1, 2, 4, 8, 16)
COLUMNS = ("concepts", "UA", "least UA", "IRA", "CRA", "steps", "record s", "train s")


def study(count: int, **options: Any) -> dict[str, Any]:
    """Erase so many in one run."""
    pairs = PAIRS[:count]
    pipe, judge = load_emoji_pipeline(), load_emoji_judge()
    worker = FDUnlearner(pipe, RUNS, progress=False, **ALL, **options)
    worker.unlearn([target for target, _ in pairs], [anchor for _, anchor in pairs], f="hellinger")
    gone = []
    for target, _ in pairs:
        own = cells(target)
        verdicts = judge_cells(pipe, judge, own, range(100, 104), **DRAW)
        gone.append(1 - accuracy(verdicts)[0])
    erased = {target for target, _ in pairs}
    rest = [cell for cell in cells() if cell[0] not in erased]
    ira, cra = accuracy(judge_cells(pipe, judge, rest, range(100, 102), **DRAW))
    return {
        "count": count,
        "options": options,
        "ua": sum(gone) / len(gone),
        "least": min(gone),
        "ira": ira,
        "cra": cra,
        "steps": len(worker.history),
        **worker.recipe["seconds"],
    }


def show(row: dict[str, Any]) -> str:
    """One row of the table."""
    shares = [f"{row[k]:.3f}" for k in ("ua", "least", "ira", "cra")]
    return line(
        [row["count"], *shares, row["steps"], f"{row['record']:.0f}", f"{row['train']:.0f}"]
    )


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/many.jsonl"),
    steps: Annotated[int, typer.Option(help="Most training steps.")] = 100,
) -> None:
    """Measure what is not in the file yet."""
    results = Results(output)
    print(line(COLUMNS) + "\n" + "|---" * len(COLUMNS) + "|")
    for count in COUNTS:
        row = results.find(count=count, options={"steps": steps})
        if row is None:
            row = study(count, steps=steps)
            results.add(row)
        print(show(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
