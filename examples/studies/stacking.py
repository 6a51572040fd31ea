"""Study of many adapters on one model: erasure of each and preservation of the rest, by number.

    python -m examples.studies.stacking --output runs/stacking.jsonl

unlearns each concept of `many_concepts.PAIRS` into an adapter of its own with the defaults, and
then puts the first 2, 4, 8, 16 together in every way of `WAYS`: side by side on the pipe, merged
into one, and merged and refined. UA is the mean over the erased concepts, IRA the share of the
other concepts' pictures that are judged right, CRA the share of theirs whose style is.

    python -m examples.studies.stacking --output runs/stacking.jsonl --timed

measures the time of 16 pictures against the same model without adapters: the least of `TIMED`
runs each, in turn; with "fused" the merged adapter is fused into the weights. An interrupted study
goes on.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_fdu import FDUnlearner, load_unlearned, merge, stack
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import caption
from diffusers_fdu.evaluation.emoji import accuracy, cells, draw, judge_cells
from diffusers_fdu.retraining import refine

from .bench import ALL, DRAW, RUNS, Results, line
from .many_concepts import PAIRS

COUNTS = (1, 2, 4, 8, 16)
RANK = 16
WAYS: dict[str, dict[str, Any] | None] = {
    "side by side": None,
    "concat": {"method": "concat"},
    f"svd, rank {RANK}": {"method": "svd", "rank": RANK},
    f"svd, rank {RANK}, refined": {"method": "svd", "rank": RANK},
}
COLUMNS = (
    "adapters",
    "together",
    "rank",
    "error",
    "UA",
    "least UA",
    "IRA",
    "CRA",
    "merge and refine s",
)
TIMED_WAYS = ("side by side", "concat", f"svd, rank {RANK}", "fused")
TIMED = 7


def adapters_of(folder: Path) -> list[Path]:
    """An adapter for each pair, trained if it is not there."""
    found = []
    for target, anchor in PAIRS:
        path = folder / target
        if not (path / "recipe.json").exists():
            worker = FDUnlearner(load_emoji_pipeline(), RUNS, progress=False, **ALL)
            worker.unlearn(target, anchor)
            worker.save(path)
            print(target, worker.recipe["steps_done"], worker.recipe["seconds"], flush=True)
        found.append(path)
    return found


def measured(pipe: Any, targets: list[str]) -> dict[str, float]:
    """UA of each target, and what is left of the other concepts."""
    judge, gone = load_emoji_judge(), []
    for target in targets:
        own = cells(target)
        verdicts = judge_cells(pipe, judge, own, range(100, 104), **DRAW)
        gone.append(1 - accuracy(verdicts)[0])
    rest = [cell for cell in cells() if cell[0] not in targets]
    ira, cra = accuracy(judge_cells(pipe, judge, rest, range(100, 102), **DRAW))
    return {"ua": sum(gone) / len(gone), "least": min(gone), "ira": ira, "cra": cra}


def slower(pipe: Any, plain: Any) -> float:
    """Time of 16 pictures against that of a pipe without adapters."""
    prompts = [caption(concept, style) for concept, style in cells()[:16]]

    def seconds(one: Any) -> float:
        started = time.perf_counter()
        draw(one, prompts, range(16), **DRAW)
        return time.perf_counter() - started

    pairs = [(seconds(pipe), seconds(plain)) for _ in range(TIMED)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def together(count: int, way: str, folders: list[Path], scratch: Path) -> tuple[Any, dict]:
    """A pipe with so many adapters in this way, and what merging says of them."""
    pipe, is_fused = load_emoji_pipeline(), way == "fused"
    options = WAYS["concat" if is_fused else way]
    if options is None:
        stack(pipe, folders[:count])
        return pipe, {"rank": 0, "error": 0.0}
    merged = merge(folders[:count], **options)
    if way.endswith("refined"):
        merged = refine(pipe, merged, progress=False)
    load_unlearned(pipe, merged.save(scratch))
    shutil.rmtree(scratch)
    if is_fused:
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    return pipe, {"rank": merged.rank, "error": merged.error}


def study(count: int, way: str, folders: list[Path], scratch: Path) -> dict[str, Any]:
    """So many adapters, together in this way."""
    started = time.perf_counter()
    pipe, facts = together(count, way, folders, scratch)
    seconds = time.perf_counter() - started
    figures = measured(pipe, [target for target, _ in PAIRS[:count]])
    return {"count": count, "way": way, **facts, "seconds": seconds, **figures}


def show(row: dict[str, Any]) -> str:
    """One row of the table."""
    shares = [f"{row[k]:.3f}" for k in ("error", "ua", "least", "ira", "cra")]
    rank = row["rank"] or f"{row['count']} x 8"
    return line([row["count"], row["way"], rank, *shares, f"{row['seconds']:.0f}"])


def timed(results: Results, folders: list[Path], scratch: Path) -> None:
    """Print and keep the time of every way, as a multiple of the plain model's."""
    print(line(["adapters", *TIMED_WAYS]) + "\n" + "|---" * (1 + len(TIMED_WAYS)) + "|")
    plain = load_emoji_pipeline()
    for count in COUNTS:
        found = []
        for way in TIMED_WAYS:
            row = results.find(count=count, timed=way)
            if row is None:
                pipe, _ = together(count, way, folders, scratch)
                row = {"count": count, "timed": way, "time": slower(pipe, plain)}
                results.add(row)
            found.append(f"{row['time']:.3f}")
        print(line([count, *found]), flush=True)


def main(
    output: Annotated[Path, typer.Option(help="JSON lines.")] = Path("runs/stacking.jsonl"),
    adapters: Annotated[Path, typer.Option(help="Folder of adapters.")] = Path("runs/stacking"),
    is_timed: Annotated[bool, typer.Option("--timed", help="Measure the time instead.")] = False,
) -> None:
    """Measure what is not in the file yet."""
    folders, results = adapters_of(adapters), Results(output)
    if is_timed:
        timed(results, folders, adapters / "merged")
        return
    print(line(COLUMNS) + "\n" + "|---" * len(COLUMNS) + "|")
    for count in COUNTS:
        for way in WAYS:
            row = results.find(count=count, way=way)
            if row is None:
                row = study(count, way, folders, adapters / "merged")
                results.add(row)
            print(show(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
