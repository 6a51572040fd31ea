"""Seconds and peak memory of a whole unlearning, phase by phase, with random weights.

    python -m examples.benchmarks.whole --model sd1

A pipeline of published size (`pipelines`) is recorded, started in closed form, trained, and drawn
with. Each phase has a line with its seconds, what PyTorch had allocated and reserved at most, and
what `FDUnlearner.estimate` says of it. Nothing can be learned from random weights: the rate is so
low that they stay finite, and no step is left out because the target has been reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer

from diffusers_fdu import FDUnlearner
from diffusers_fdu.training import auto_fit
from diffusers_fdu.training import trainer as training_module

from .lines import Results
from .measuring import GIB, Phases, capped
from .pipelines import sd1_pipeline, sdxl_pipeline
from .step import RATE, half
from .tables import Column, markdown

MAKERS = {"sd1": sd1_pipeline, "sdxl": sdxl_pipeline}
TARGET, ANCHOR = "dog", "cat"
DRAWN_STEPS = 8
FEW = {"trajectories": 4, "steps": 3}
PHASES = {
    "build": "build",
    "recording": "record",
    "distances": "first distances",
    "closed_form": "closed form",
    "training": "train",
    "drawing": "draw",
}
Row = dict[str, Any]


@dataclass
class Unlearning:
    """A pipeline and how it is unlearned.

    Args:
        results: where the lines go.
        model: of `MAKERS`.
        settings: the options in words, for the table.
        options: of `FDUnlearner`.
        tiny: in the smallest sizes.
    """

    results: Results
    model: str
    settings: str
    options: dict[str, Any] = field(default_factory=dict)
    tiny: bool = False
    pipe: Any = None
    buffer: Any = None
    estimates: Any = None

    def run(self) -> None:
        """Record, unless that was done before, and train."""
        phases = self._phases()
        if self.pipe is None:
            phases.begin("build")
            device = self.results.device
            self.pipe = MAKERS[self.model](device, half(device), tiny=self.tiny)
        worker = FDUnlearner(
            self.pipe, progress=False, learning_rate=RATE, early_stop=0.0, **self.options
        )
        phases.begin("estimate")
        fit = auto_fit.fit_together(worker.context, traces=True)
        phases.end()
        self.estimates = phases.estimates = fit.estimate
        # Traced once, not thrice.
        with patch.object(auto_fit, "fit_together", lambda *_, **__: fit):
            if self.buffer is None:
                phases.begin("recording")
                self.buffer = worker.record(TARGET, ANCHOR)
            phases.begin("distances")
            with _closed_form(phases):
                worker.unlearn(TARGET, ANCHOR, buffer=self.buffer)
        phases.end()
        recorded = worker.recipe["buffer"]
        about = {"steps": len(worker.history), "recorded": recorded}
        self.results.add("unlearn_about", model=self.model, settings=self.settings, **about)

    def again(self, settings: str, **options: Any) -> None:
        """Train once more on what was recorded, without the adapter that is there."""
        self.pipe.unload_lora_weights()
        self.settings, self.options = settings, {**self.options, **options}
        self.run()

    def draw(self) -> None:
        """Draw a picture, the autoencoder's part included."""
        phases = self._phases()
        phases.begin("drawing")
        self.pipe("a dog", num_inference_steps=DRAWN_STEPS)
        phases.end()

    def _phases(self) -> Phases:
        names = {"model": self.model, "settings": self.settings}
        return Phases(self.results, "unlearn", self.estimates, **names)


@contextmanager
def _closed_form(phases: Phases) -> Iterator[None]:
    """A phase of its own for the closed form, and one for what follows it."""
    solve = training_module.closed_form_start

    def timed(*args: Any, **kwargs: Any) -> int:
        phases.begin("closed_form")
        try:
            return solve(*args, **kwargs)
        finally:
            phases.begin("training")

    training_module.closed_form_start = timed
    try:
        yield
    finally:
        training_module.closed_form_start = solve


def run_sd1(results: Results, tiny: bool = False) -> None:
    """Stable Diffusion 1 with the defaults, in bfloat16 on a GPU."""
    names = {"model": "sd1", "settings": "defaults"}
    unlearning = Unlearning(results, **names, options=FEW if tiny else {}, tiny=tiny)
    with results.attempt("unlearn", **names):
        unlearning.run()
        unlearning.draw()


def run_sdxl(results: Results, caps: tuple[float, float] = (12, 8), tiny: bool = False) -> None:
    """Stable Diffusion XL in little memory: recorded and trained, then a step in less.

    Args:
        results: where the lines go.
        caps: GiB that PyTorch may take; on the CPU there is no cap.
        tiny: in the smallest sizes.
    """
    device = results.device
    first, second = (f"{gib:g} GiB" if device == "cuda" else "no cap" for gib in caps)
    unlearning = Unlearning(results, "sdxl", first, dict(FEW), tiny)
    with results.attempt("unlearn", model="sdxl", settings=first):
        with capped(device, caps[0]) if device == "cuda" else nullcontext():
            unlearning.run()
        unlearning.draw()  # what the autoencoder takes is no part of the training
    if device == "cuda" and unlearning.buffer is not None:
        with results.attempt("unlearn", model="sdxl", settings=second), capped(device, caps[1]):
            unlearning.again(second, steps=1)


def table(rows: list[Row]) -> str:
    """Seconds of each phase, and the peak from recording to training: a row an unlearning."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = row["model"], row["settings"]
        whole = found.setdefault(place, {"model": row["model"], "settings": row["settings"]})
        if "phase" in row:
            whole[row["phase"]] = row["seconds"]
            for key in ("bytes", "reserved_bytes"):
                if row["phase"] not in ("build", "estimate", "drawing"):
                    whole[key] = max(whole.get(key, 0), row.get(key) or 0)
        else:
            whole |= {key: row[key] for key in ("skipped", "error") if key in row}
    columns = [Column("model", "model"), Column("settings", "settings")]
    columns += [Column(key, f"{title} s", ".1f") for key, title in PHASES.items()]
    columns += [Column("bytes", "GiB", ".2f", GIB)]
    columns += [Column("reserved_bytes", "reserved GiB", ".2f", GIB)]
    return markdown(list(found.values()), columns, labels=2)


MEMORY = (
    Column("what", "what"),
    Column("phase", "phase"),
    Column("estimate_bytes", "estimated GiB", ".2f", GIB),
    Column("bytes", "measured GiB", ".2f", GIB),
    Column("ratio", "estimated / measured", ".2f"),
    Column("reserved_bytes", "reserved GiB", ".2f", GIB),
)


def memory_table(rows: list[Row]) -> str:
    """Estimated against measured peak memory, of every line that has both."""
    shown = []
    for row in rows:
        if row.get("estimate_bytes") and row.get("bytes"):
            names = [row["model"]]
            if "variant" in row:
                names += [row["variant"], f"{row['batch']} rows of each role"]
            what = ", ".join([*names, *([row["settings"]] if "settings" in row else [])])
            ratio = row["estimate_bytes"] / row["bytes"]
            shown.append({"phase": "a step's peak", **row, "what": what, "ratio": ratio})
    return markdown(shown, MEMORY, labels=2)


def main(
    output: Annotated[Path, typer.Option(help="File of lines of JSON, added to.")] = Path(
        "runs/whole.jsonl"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    model: Annotated[str, typer.Option(help="sd1 or sdxl.")] = "sd1",
    tiny: Annotated[bool, typer.Option("--tiny", help="Smallest sizes, to try it.")] = False,
) -> None:
    """Measure one model's unlearning."""
    results = Results(output, device, tiny=tiny)
    if model == "sdxl":
        run_sdxl(results, tiny=tiny)
    else:
        run_sd1(results, tiny)
    print(table([row for row in results.rows if row["benchmark"] == "unlearn"]))
    print(memory_table(results.rows))


if __name__ == "__main__":
    typer.run(main)
