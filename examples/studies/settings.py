"""Study of the default settings: steps until a concept is gone, and what is left of the rest.

    python -m examples.studies.settings --output runs/study.json

trains the embedded model once for every line of `VARIANTS`, with kl. After some steps the
target's pictures are judged; "steps to erase" is the first look at which enough are gone. In the
end everything is judged. Pictures are drawn in 15 steps, one seed a cell, and 8 for the target
dog: a share of 0.9 has a standard error of 0.03 here. Anything else is measured with

    python -m examples.studies.settings --target blob --set rank=32 --set steps=200
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import Concept, FDUnlearner, StepRecord
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import CONCEPTS
from diffusers_fdu.evaluation.emoji import Scores, cells, judge_cells, scores

ANCHORS = {"dog": "cat", "blob": "noto"}
GONE = {"dog": 0.95, "blob": 0.9}  # noto itself is judged blob now and then
LOOKS = (1, 5, 10, 15, 20, 30, 40, 60, 80, 100)
STEPS = 100
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dog": [{}, {"init": "lora"}, {"trajectories": 24}, {"trajectories": 24, "init": "lora"}],
    "blob": [
        {},
        {"init": "lora"},
        {"learning_rate": 2.5e-3},
        {"learning_rate": 1e-2},
        {"rank": 4},
        {"rank": 16},
        {"batch_size": 8},
        {"batch_size": 32},
        {"trajectories": 24},
        {"trajectories": 48},
        {"num_inference_steps": 4},
        {"num_inference_steps": 16},
        {"retain_weight": 1.0},
        {"retain_weight": 4.0},
    ],
}


def judged(pipe: Any, target: str, all_cells: bool) -> Scores:
    """Scores of a pipe; of the target alone, the others count as kept."""
    own = cells(target)
    rest = [cell for cell in cells() if target not in cell]
    judge = load_emoji_judge()
    seeds = range(100, 108 if target in CONCEPTS else 101)
    verdicts = judge_cells(pipe, judge, own, seeds, num_inference_steps=15)
    rest = rest if all_cells else rest[:1]
    verdicts += judge_cells(pipe, judge, rest, range(100, 101), num_inference_steps=15)
    return scores(verdicts, target)


def study(target: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; steps until the target is gone, and the scores in the end."""
    options: dict[str, Any] = {"steps": STEPS, "trajectories": 96, **settings}
    runs = {"guidance_scale": 4.0}
    if "num_inference_steps" in options:  # of the recorded runs
        runs["num_inference_steps"] = options.pop("num_inference_steps")
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, runs, progress=False, **options)
    gone: list[int] = []

    def look(record: StepRecord) -> None:
        done = record.step + 1
        if not gone and done in LOOKS and judged(pipe, target, False).ua >= GONE[target]:
            gone.append(done)

    kind = "object" if target in CONCEPTS else "style"
    concept = Concept(target, ANCHORS[target], kind=kind)  # type: ignore[arg-type]
    worker.unlearn(concept, f="kl", callback=look)
    result = judged(pipe, target, True)
    return {
        "target": target,
        "settings": settings,
        "steps_to_erase": gone[0] if gone else None,
        "steps": len(worker.history),
        "scores": result._asdict(),
        "distance": sum(r.distance for r in worker.history[-5:]) / 5,
        "retain": sum(r.retain for r in worker.history[-5:]) / 5,
    }


def show(row: dict[str, Any]) -> None:
    """One row of the table."""
    settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items()) or "defaults"
    gone = row["steps_to_erase"]
    cells = [row["target"], settings, "none" if gone is None else f"{gone}", f"{row['steps']}"]
    cells += [f"{row['scores'][k]:.3f}" for k in ("ua", "ira", "cra")]
    cells += [f"{row[k]:.3f}" for k in ("distance", "retain")]
    print("| " + " | ".join(cells) + " |", flush=True)


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/study.json"),
    target: Annotated[str, typer.Option(help="Only dog, or only blob.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One run with name=value instead.")
    ] = None,
) -> None:
    """Train and judge every variant."""
    pairs = [setting.split("=", 1) for setting in settings or ()]
    own = {name: json.loads(value) for name, value in pairs}
    output.parent.mkdir(parents=True, exist_ok=True)
    print("| target | settings | steps to erase | steps | UA | IRA | CRA | distance | retain |")
    print("|---" * 9 + "|")
    rows = []
    for name, variants in VARIANTS.items():
        for variant in [own] if own else variants:
            if not target or target == name:
                rows.append(study(name, variant))
                show(rows[-1])
                output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
