"""Wall clock from a loaded pipe to an erased concept, on the embedded model.

    python -m examples.benchmarks.time_to_erase --output runs/time_to_erase.json

dog -> cat with kl: this library with its defaults against the usual loop (`usual_loop`) as
released, and both with the settings that were fastest for this model and concept. Erased is
UA >= 0.95 (40 pictures of dogs) with IRA >= 0.9 of the model's own (every other concept in every
style, one seed: 124 pictures, 25 steps, guidance 4). Both are looked at from the callback after
some steps, and the time of looking is taken off the clock. `--sweep` tries settings of the usual
loop and prints them all.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from diffusers_fdu import Concept, FDUnlearner, StepRecord
from diffusers_fdu.emoji import (
    accuracy,
    cells,
    judge_cells,
    load_emoji_judge,
    load_emoji_pipeline,
)
from diffusers_fdu.emoji.canvas import Cell
from diffusers_fdu.words import vocabulary

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


class Watch:
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
    own = [cell for cell in cells() if TARGET in cell]
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


def row(name: str, watch: Watch, prepared: float, steps: int) -> Row:
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
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, **options)
    watch = Watch(pipe, ira, tiny)

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
    watch = Watch(pipe, ira, tiny)
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


def run(device: str, tiny: bool = False, sweep: bool = False) -> list[Row]:
    """Every method; `ratio` is the time of ours against theirs, default and tuned."""
    base = load_emoji_pipeline().to(device)
    ua, ira = erased(base, tiny), kept(base, tiny)
    defaults = ours("ours", ira, device, tiny, **({"steps": 2, "trajectories": 2} if tiny else {}))
    tuned = ours("ours, tuned", ira, device, tiny, **OURS_TUNED)[:1]  # it stops at once
    small = {"images": 2, "draw_steps": 2, "steps": 2} if tiny else {}
    others = {
        "usual, as released": (replace(UsualConfig(), **small), defaults),
        "usual, tuned": (replace(TUNED, **small), tuned),
    }
    rows: list[Row] = [{"method": "(before)", "ua": ua, "ira": ira}, *defaults, *tuned]
    for name, (config, rival) in others.items():
        rows.append(usual(name, config, ira, device, tiny))
        mine, theirs = rival[0]["total_s"], rows[-1]["total_s"]
        rows[-1]["ratio"] = mine / theirs if mine and theirs else None
    for rate, images, batch in itertools.product(RATES, IMAGES, BATCHES) if sweep else ():
        config = replace(TUNED, learning_rate=rate, images=images, batch_size=batch)
        name = f"usual, lr {rate:g}, {images} images, batch {batch}"
        rows.append(usual(name, config, ira, device, tiny))
        print(rows[-1], flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    columns = ("prepare_s", "train_s", "total_s", "steps", "ua", "ira", "ratio")
    titles = ("prepare s", "train s", "total s", "steps", "UA", "IRA", "ours / this")
    forms = (".1f", ".1f", ".1f", "d", ".3f", ".3f", ".2f")
    lines = [f"| method | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for one in rows:
        values = zip(columns, forms, strict=True)
        cells = ["" if one.get(c) is None else format(one[c], form) for c, form in values]
        if one["method"] != "(before)" and one.get("total_s") is None:
            cells[2] = f"not in {one['steps_run']} steps"
        lines.append(f"| {one['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/time_to_erase.json"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    sweep: Annotated[bool, typer.Option("--sweep", help="Also tune the usual loop.")] = False,
) -> None:
    """Time ours and the usual loop."""
    rows = run(device, sweep=sweep)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
