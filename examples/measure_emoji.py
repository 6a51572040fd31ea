"""Measure unlearning on the embedded model: UA, IRA, CRA and seconds for several divergences.

    python examples/measure_emoji.py --output runs/figures.json

prints a table for the concept dog -> cat under several f, and for the style blob -> noto. What is
not the default is named, one --set a value, and measured in the same way:

    python examples/measure_emoji.py --only blob --f kl --set learning_rate=0.001

Pictures are drawn with guidance 4 in 25 steps; a concept's own cells with 10 seeds, a style's with
4, all other cells with 2, none of them seen in training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import Concept, FDUnlearner
from diffusers_fdu.data.concepts import Kind
from diffusers_fdu.emoji.loading import load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import CONCEPTS
from diffusers_fdu.evaluation.emoji import Scores, measure

FS = ("kl", "hellinger", "chi2", "js", "tv")
JOBS = [("dog", "cat", f) for f in FS] + [("blob", "noto", f) for f in FS[:4]]
COLUMNS = ("target", "anchor", "f", "UA", "IRA", "CRA", "IRA kept", "CRA kept")
COSTS = ("steps", "record s", "train s")


def judged(pipe: object, target: str) -> Scores:
    """Scores of a pipe, by the embedded judge."""
    return measure(pipe, target, own_seeds=10 if target in CONCEPTS else 4, other_seeds=2)


def main(
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = Path(
        "runs/figures.json"
    ),
    only: Annotated[str, typer.Option(help="Only this target.")] = "",
    f: Annotated[str, typer.Option("--f", help="Only this divergence.")] = "",
    seed: Annotated[int, typer.Option(help="Of the unlearning.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A field of TrainConfig, as name=value.")
    ] = None,
) -> None:
    """Train and measure every job."""
    config = dict(setting.split("=", 1) for setting in settings or ())
    values: dict[str, Any] = {name: json.loads(value) for name, value in config.items()}
    runs = {"guidance_scale": 4.0}
    if "num_inference_steps" in values:  # of the recorded runs
        runs["num_inference_steps"] = values.pop("num_inference_steps")
    output.parent.mkdir(parents=True, exist_ok=True)
    base: dict[str, Scores] = {}
    rows = []
    print(f"| {' | '.join(COLUMNS + COSTS)} |")
    print("|---" * len(COLUMNS + COSTS) + "|")
    for target, anchor, name in JOBS:
        if (only and only != target) or (f and f != name):
            continue
        if target not in base:
            base[target] = judged(load_emoji_pipeline().to(device), target)
            show(target, "", "before", base[target])
        pipe = load_emoji_pipeline().to(device)
        kind: Kind = "object" if target in CONCEPTS else "style"
        worker = FDUnlearner(pipe, runs, progress=False, seed=seed, **values)
        worker.unlearn(Concept(target, anchor, kind=kind), f=name)
        seconds, after = worker.recipe["seconds"], judged(pipe, target)
        show(target, anchor, name, after, base[target], len(worker.history), seconds)
        rows.append(
            {
                "target": target,
                "anchor": anchor,
                "f": name,
                "seed": seed,
                "settings": {**runs, **config},
                "before": base[target]._asdict(),
                "after": after._asdict(),
                "steps": len(worker.history),
                "seconds": seconds,
            }
        )
        output.write_text(json.dumps(rows, indent=2) + "\n")


def show(
    target: str,
    anchor: str,
    f: str,
    result: Scores,
    base: Scores | None = None,
    steps: int | str = "",
    seconds: dict[str, float] | None = None,
) -> None:
    """One row of the table."""
    figures = [f"{value:.3f}" for value in (result.ua, result.ira, result.cra)]
    kept = ["", ""]
    if base is not None:
        kept = [f"{result.ira / base.ira:.0%}", f"{result.cra / base.cra:.0%}"]
    costs = [f"{value:.0f}" for value in (seconds or {}).values()] or ["", ""]
    row = [target, anchor, f, *figures, *kept, str(steps), *costs]
    print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
