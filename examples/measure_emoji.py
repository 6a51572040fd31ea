"""Measure unlearning on the embedded model: UA, IRA, CRA and seconds for several divergences.

    python examples/measure_emoji.py --output runs/figures.json

prints a table for the target dog -> cat under several f, and for the style blob -> noto. Pictures
are drawn with guidance 4 in 25 steps; the target's cells with 10 seeds (4 for a style), all other
cells with 2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffusers_fdu import Concept, FDUnlearner
from diffusers_fdu.concepts import Kind
from diffusers_fdu.emoji import (
    CONCEPTS,
    Scores,
    cells,
    judge_cells,
    load_emoji_judge,
    load_emoji_pipeline,
    scores,
)

JOBS = [("dog", "cat", f) for f in ("kl", "hellinger", "chi2", "js", "tv")]
JOBS += [("blob", "noto", f) for f in ("kl", "hellinger")]


def measure(pipe: object, target: str) -> Scores:
    """Scores of a pipe, by the embedded judge."""
    judge = load_emoji_judge()
    own = [cell for cell in cells() if target in cell]
    rest = [cell for cell in cells() if target not in cell]
    seeds = range(100, 110 if target in CONCEPTS else 104)
    verdicts = judge_cells(pipe, judge, own, seeds)
    verdicts += judge_cells(pipe, judge, rest, range(100, 102))
    return scores(verdicts, target)


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = Path(
        "runs/figures.json"
    ),
    only: Annotated[str, typer.Option(help="Only this target, or f.")] = "",
    seed: Annotated[int, typer.Option(help="Of the unlearning.")] = 0,
) -> None:
    """Train and measure every job."""
    output.parent.mkdir(parents=True, exist_ok=True)
    base: dict[str, Scores] = {}
    rows = []
    print("| target | anchor | f | UA | IRA | CRA | steps | record s | train s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for target, anchor, f in JOBS:
        if only and only not in (target, f):
            continue
        if target not in base:
            base[target] = measure(load_emoji_pipeline(), target)
            show(target, "", "before", base[target], [])
        pipe = load_emoji_pipeline()
        kind: Kind = "object" if target in CONCEPTS else "style"
        worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, seed=seed)
        worker.unlearn(Concept(target, anchor, kind=kind), f=f)
        seconds = worker.recipe["seconds"]
        after = measure(pipe, target)
        extra = [len(worker.history), seconds["record"], seconds["train"]]
        show(target, anchor, f, after, extra)
        rows.append(
            {
                "target": target,
                "anchor": anchor,
                "f": f,
                "seed": seed,
                "before": base[target].as_dict(),
                "after": after.as_dict(),
                "steps": len(worker.history),
                "seconds": seconds,
            }
        )
        output.write_text(json.dumps(rows, indent=2) + "\n")


def show(target: str, anchor: str, f: str, result: Scores, extra: list) -> None:
    """One row of the table."""
    figures = [f"{value:.3f}" for value in (result.ua, result.ira, result.cra)]
    figures += [str(value) for value in extra] or ["", "", ""]
    print("| " + " | ".join([target, anchor, f, *figures]) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
