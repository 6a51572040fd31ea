"""Study of the critic's training: how well must it keep up with the student?

    python -m examples.studies.critic --output runs/critic.jsonl

fluent -> twitter under kl, where the closed-form start leaves most to do, one seed unless
`--seeds` says more; judged as the table of methods is. An interrupted study goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner, Variational
from diffusers_fdu.emoji.loading import load_emoji_pipeline

from ..baselines.table import Table
from .bench import ALL, RUNS, Results, concept, line, over

TARGET, ANCHOR = "fluent", "twitter"
VARIANTS: dict[str, dict[str, Any]] = {
    "closed-form start alone": {"steps": 1, "learning_rate": 1e-9, "early_stop": 0.0},
    "1, 1e-3": {"estimator": Variational(1e-3, critic_steps=1)},
    "1, 1e-3, no gradient penalty": {
        "estimator": Variational(1e-3, critic_steps=1, gradient_penalty=0.0)
    },
    "3, 1e-3": {"estimator": Variational(1e-3, critic_steps=3)},
    "4, 3e-3": {"estimator": Variational(3e-3, critic_steps=4)},
    "8, 3e-3": {"estimator": Variational(3e-3, critic_steps=8)},
    "the exact profile": {},
}


def measure(results: Results, seeds: int) -> None:
    """Train and judge what is not in the file yet."""
    judge = Table(results)
    for seed in range(seeds):
        buffer = None
        for name, options in VARIANTS.items():
            if results.find(variant=name, seed=seed) is not None:
                continue
            worker = FDUnlearner(
                load_emoji_pipeline(), RUNS, progress=False, seed=seed, **ALL, **options
            )
            if buffer is None:
                buffer = worker.record(concept(TARGET, ANCHOR))
            worker.unlearn(concept(TARGET, ANCHOR), f="kl", buffer=buffer)
            figures = judge.figures(worker.pipe, TARGET)
            train = worker.recipe["seconds"]["train"]
            results.add({"variant": name, "seed": seed, "train": train, **figures})


def table(results: Results) -> str:
    """Means over seeds."""
    columns = ("ua", "ira", "cra", "harmonic", "train")
    lines = [line(["critic's steps, rate", *columns]), "|---" * (1 + len(columns)) + "|"]
    for name in VARIANTS:
        rows = [row for row in results.rows if row["variant"] == name]
        if rows:
            cells = (over(rows, c) if len(rows) > 1 else f"{rows[0][c]:.3f}" for c in columns)
            lines.append(line([name, *cells]))
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/critic.jsonl"),
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 1,
) -> None:
    """Measure, and print the table."""
    results = Results(output)
    measure(results, seeds)
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
