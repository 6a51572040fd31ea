"""Wall clock from a loaded pipe to an erased concept, on the embedded model.

    python -m examples.benchmarks.time_to_erase --output runs/time_to_erase.jsonl

dog -> cat with kl: this library with its defaults against the usual loop (`usual_loop`) as
released, and both with the settings that were fastest for this model and concept. Erased is
UA >= 0.95 (40 pictures of dogs) with IRA >= 0.9 of the model's own (every other concept in every
style, one seed: 124 pictures, 25 steps, guidance 4). Both are looked at from the callback after
some steps, and the time of looking is taken off the clock. `--sweep` tries settings of the usual
loop and prints them all.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from diffusers_fdu import Concept, FDUnlearner, StepRecord
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import Cell, accuracy, cells, judge_cells
from diffusers_fdu.pipelines.tokenizers import vocabulary

from .lines import Results
from .tables import Column, markdown
from .usual_loop import UsualConfig, UsualLoop

TARGET, ANCHOR = "dog", "cat"
GONE, KEPT = 0.95, 0.9
LOOKS = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 125, 150, 200, 250, 300, 350, 400, 450, 500)
CAPTIONS = 200
TUNED = UsualConfig(
    guidance_scale=4.0, images=25, batch_size=4, accumulation=1, learning_rate=0.001, steps=400
)
OURS_TUNED = {"trajectories": 4, "steps": 1}
RATES, IMAGES, BATCHES = (3e-4, 1e-3, 3e-3), (50, 200), (4, 16)
Row = dict[str, Any]


class Stopwatch:
    """A clock that stops while pictures are judged, and what was seen when."""

    def __init__(self, pipe: Any, ira: float, tiny: bool) -> None:
        self.pipe, self.wanted, self.tiny = pipe, KEPT * ira, tiny
        self.started, self.aside = time.monotonic(), 0.0
        self.prepared: float | None = None
        self.reached: Row | None = None

    def seconds(self) -> float:
        """Since the start, less what looking took."""
        return time.monotonic() - self.started - self.aside

    def look(self, done: int) -> bool:
        """Whether the concept is gone and the rest is there, after so many steps."""
        if self.reached is not None or done not in LOOKS:
            return self.reached is not None
        now = self.seconds()
        begun = time.monotonic()
        ua = erased(self.pipe, self.tiny)
        ira = kept(self.pipe, self.tiny) if ua >= GONE else 0.0
        self.aside += time.monotonic() - begun
        if ua >= GONE and ira >= self.wanted:
            self.reached = {"steps": done, "seconds": now, "ua": ua, "ira": ira}
        return self.reached is not None


def erased(pipe: Any, tiny: bool = False) -> float:
    """UA: the share of the target's pictures that are not judged it."""
    own = cells(TARGET)
    return 1 - right(pipe, own, range(100, 101 if tiny else 110), tiny)


def kept(pipe: Any, tiny: bool = False) -> float:
    """IRA: the share of the other concepts' pictures that are judged right."""
    rest = [cell for cell in cells() if TARGET not in cell]
    return right(pipe, rest[:4] if tiny else rest, range(100, 101), tiny)


def right(pipe: Any, asked: list[Cell], seeds: range, tiny: bool) -> float:
    """The share of pictures whose concept is judged the one asked for."""
    steps = 2 if tiny else 25
    verdicts = judge_cells(pipe, load_emoji_judge(), asked, seeds, num_inference_steps=steps)
    return accuracy(verdicts)[0]


def row(name: str, watch: Stopwatch, prepared: float, steps: int) -> Row:
    """What one run of one method took."""
    reached = watch.reached or {"steps": None, "seconds": None, "ua": None, "ira": None}
    total = reached["seconds"]
    return {
        "method": name,
        "prepare_s": prepared,
        "train_s": None if total is None else total - prepared,
        "total_s": total,
        "steps": reached["steps"],
        "steps_run": steps,
        "ua": reached["ua"],
        "ira": reached["ira"],
    }


def ours(name: str, ira: float, device: str, tiny: bool, **options: Any) -> list[Row]:
    """This library: until the first look that meets both, and until it stops by itself."""
    pipe = load_emoji_pipeline().to(device)
    # The callback draws, for which text encoder and autoencoder must be where the denoiser is.
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, offload=False, **options)
    watch = Stopwatch(pipe, ira, tiny)

    def look(record: StepRecord) -> None:
        if watch.prepared is None:  # everything before the first step's end
            watch.prepared = watch.seconds()
        watch.look(record.step + 1)

    worker.unlearn(TARGET, ANCHOR, f="kl", callback=look)
    stopped, prepared = watch.seconds(), watch.prepared or 0.0
    ua, left = erased(pipe, tiny), kept(pipe, tiny)
    first = row(name, watch, prepared, len(worker.history))
    last = {
        **first,
        "method": f"{name}, until it stops",
        "total_s": stopped,
        "train_s": stopped - prepared,
        "steps": len(worker.history),
        "ua": ua,
        "ira": left,
    }
    return [first, last]


def usual(name: str, config: UsualConfig, ira: float, device: str, tiny: bool) -> Row:
    """The usual loop, until the first look that meets both or its last step."""
    pipe = load_emoji_pipeline().to(device)
    pipe.set_progress_bar_config(disable=True)
    watch = Stopwatch(pipe, ira, tiny)
    loop = UsualLoop(pipe, config)
    words, rng = vocabulary(pipe), random.Random(config.seed)
    pairs = Concept(TARGET, ANCHOR).prompt_pairs(min(CAPTIONS, config.images), words, rng)
    captions = [(pair.target, pair.anchor) for pair in pairs]
    captions = [captions[i % len(captions)] for i in range(config.images)]
    loop.start(loop.draw([anchor for _, anchor in captions]), captions)
    prepared = watch.seconds()
    for step in range(config.steps):
        loop.step()
        if watch.look(step + 1):
            break
    return row(name, watch, prepared, step + 1)


def run(results: Results, tiny: bool = False, sweep: bool = False) -> None:
    """Every method, a line for each.

    Args:
        results: where the lines go.
        tiny: as little as shows that it runs.
        sweep: also try settings of the usual loop.
    """
    device = results.device
    base = load_emoji_pipeline().to(device)
    ua, ira = erased(base, tiny), kept(base, tiny)
    results.add("time_to_erase", method="(before)", ua=ua, ira=ira)
    few = {"steps": 2, "trajectories": 2} if tiny else {}
    for name, options in (("ours", few), ("ours, tuned", OURS_TUNED)):
        with results.attempt("time_to_erase", method=name):
            rows = ours(name, ira, device, tiny, **options)
            for one in rows[: 1 if options is OURS_TUNED else 2]:  # tuned it stops at once
                results.add("time_to_erase", **one)
    small = {"images": 2, "draw_steps": 2, "steps": 2} if tiny else {}
    others = {
        "usual, tuned": replace(TUNED, **small),
        "usual, as released": replace(UsualConfig(), **small),
    }
    for rate, images, batch in itertools.product(RATES, IMAGES, BATCHES) if sweep else ():
        name = f"usual, lr {rate:g}, {images} images, batch {batch}"
        others[name] = replace(TUNED, learning_rate=rate, images=images, batch_size=batch)
    for name, config in others.items():
        with results.attempt("time_to_erase", method=name):
            results.add("time_to_erase", **usual(name, config, ira, device, tiny))


COLUMNS = (
    Column("method", "method"),
    Column("prepare_s", "prepare s", ".1f"),
    Column("train_s", "train s", ".1f"),
    Column("total", "total s"),
    Column("steps", "steps"),
    Column("ua", "UA", ".3f"),
    Column("ira", "IRA", ".3f"),
    Column("ratio", "ours / this", ".2f"),
)
RIVALS = {"usual, as released": "ours", "usual, tuned": "ours, tuned"}


def table(rows: list[Row]) -> str:
    """The rows in Markdown; `ratio` is the time of ours against theirs, default and tuned."""
    totals = {row["method"]: row.get("total_s") for row in rows}
    shown = []
    for one in rows:
        total, mine = one.get("total_s"), totals.get(RIVALS.get(one["method"], ""))
        found = dict(one, ratio=mine / total if mine and total else None)
        if total is not None:
            found["total"] = f"{total:.1f}"
        elif "steps_run" in one:
            found["total"] = f"not in {one['steps_run']} steps"
        shown.append(found)
    return markdown(shown, COLUMNS)


def main(
    output: Annotated[Path, typer.Option(help="File of lines of JSON, added to.")] = Path(
        "runs/time_to_erase.jsonl"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    sweep: Annotated[bool, typer.Option("--sweep", help="Also tune the usual loop.")] = False,
) -> None:
    """Time ours and the usual loop."""
    results = Results(output, device)
    run(results, sweep=sweep)
    print(table(results.rows))


if __name__ == "__main__":
    typer.run(main)
