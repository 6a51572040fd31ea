"""Time and memory of one optimizer step on denoisers of real size, with random weights.

    python -m examples.benchmarks.train_step --output runs/train_step.jsonl

Ours is `train` on a replay buffer of random rows; the other is the usual loop (`usual_loop`).
With a batch of B both put B rows to unlearn and B rows to retain through the student; the usual
loop also asks its teacher about B rows, encodes 2 B pictures and 3 B captions. "Row by row" asks
about the same rows one by one. On a GPU ours keeps the base in bfloat16, and the usual loop its
student in float32 under autocast and the rest in bfloat16; on the CPU all is float32. With 4-bit
the base's linear layers are NF4 of bitsandbytes. Each model has a process of its own, which tries
all its variants. Memory is what PyTorch had allocated at most on the device, on the CPU the
process's resident memory at most. What does not fit by the library's estimate is not tried;
"estimate" is that estimate as a share of what was measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from . import denoisers
from .denoisers import SIZES
from .lines import Results, Skipped, newest, read
from .measuring import GIB, peak_bytes, reset_peak, wait
from .step import Ours, check_free, loss_seconds, usual
from .tables import Column, markdown

LEAST = {"micro_batch_size": 1, "gradient_checkpointing": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, gradient_checkpointing": {"gradient_checkpointing": True},
    "ours, compile": {"compile": True},
    "ours, row by row": LEAST,
    "ours, 4-bit": {"four_bit": True},
    "ours, 4-bit, row by row": {"four_bit": True, **LEAST},
    "usual": {},
}
WARMUP = 2
MODULE = "examples.benchmarks.train_step"
FAILED = 3  # a process's exit code, where it wrote lines that say what
Row = dict[str, Any]
Job = tuple[str, int]


def jobs(device: str, model: str) -> list[Job]:
    """What is tried of a model: a variant and its rows of each role.

    Several row counts on a GPU, of which the largest is the library's default; on the CPU one.
    """
    batches = [2, 16] if device == "cuda" else [1]
    found: list[Job] = [("ours", batch) for batch in batches]
    found += [(name, batches[-1]) for name in VARIANTS if name not in ("ours", "usual")]
    if SIZES[model].unet is not None:
        found += [("usual", batch) for batch in batches]
    return found


class Family:
    """All variants of one model, in this process.

    Args:
        model: of `SIZES`.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: str, device: str) -> None:
        self.model, self.size, self.device = model, SIZES[model], device
        self._ours: tuple[bool, Ours] | None = None

    def measure(self, variant: str, batch: int, steps: int) -> Row:
        """Median seconds and peak memory of one variant's step.

        Raises:
            Skipped: if it cannot run here.
        """
        run = self._usual if variant == "usual" else self._trained
        return run(variant, batch, steps)

    def _trained(self, variant: str, batch: int, steps: int) -> Row:
        options = dict(VARIANTS[variant])
        ours = self.built(options.pop("four_bit", False))
        settings = ours.settings(batch, WARMUP + steps, **options)
        needs = ours.estimate(settings)
        reset_peak(self.device)
        # The weights are there, and their place is not free.
        check_free(self.device, needs.adapter + needs.activations)
        marks = [time.perf_counter()]
        torch.compiler.reset()
        ours.train(settings, lambda: marks.append(time.perf_counter()))
        times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
        step = statistics.median(times[WARMUP:])
        row: Row = {"seconds": step, "bytes": peak_bytes(self.device)}
        if self.device == "cuda":  # the CPU's peak holds the programs, too
            row["estimate_bytes"] = sum(needs)
        row["first_s"] = times[0] - step
        row["loss_s"] = loss_seconds(self.size, self.device, batch)
        return row

    def _usual(self, variant: str, batch: int, steps: int) -> Row:
        self._ours = None
        reset_peak(self.device)
        loop = usual(self.size, self.device, batch)
        reset_peak(self.device)
        times = []
        for _ in range(WARMUP + steps):
            begun = time.perf_counter()
            loop.step()  # reads its loss, which waits for the device
            wait(self.device)
            times.append(time.perf_counter() - begun)
        return {"seconds": statistics.median(times[WARMUP:]), "bytes": peak_bytes(self.device)}

    def built(self, four_bit: bool) -> Ours:
        """The denoiser of the variant before, if it will do."""
        if four_bit and (reason := denoisers.no_four_bit(self.device)):
            raise Skipped(reason)
        if self._ours is None or self._ours[0] != four_bit:
            self._ours = None
            reset_peak(self.device)
            self._ours = four_bit, Ours.build(self.size, self.device, four_bit)
        return self._ours[1]


def run_family(results: Results, model: str, steps: int, wanted: Sequence[Job] = ()) -> None:
    """Measure one model here.

    Args:
        results: where the lines go.
        model: of `SIZES`.
        steps: timed steps of each variant.
        wanted: what to try; nothing: `jobs`.
    """
    family = Family(model, results.device)
    for variant, batch in wanted or jobs(results.device, model):
        row = {"model": model, "variant": variant, "batch": batch}
        with results.attempt("train_step", **row):
            found = family.measure(variant, batch, steps)
            results.add("train_step", **row, **found)
        reset_peak(results.device)


def run(results: Results, models: Sequence[str], steps: int = 8) -> None:
    """Measure every model, each in a process of its own."""
    for model in models:
        job = [str(results.path), results.device, model, steps, results.common]
        command = [sys.executable, "-m", MODULE, "--one", json.dumps(job)]
        code = subprocess.run(command).returncode
        results.failed |= code != 0
        if code not in (0, FAILED):
            results.add("train_step", model=model, error=f"its process ended with {code}")


def compared(rows: list[Row]) -> list[Row]:
    """The rows with ratios to the usual loop, and after how many steps compiling has paid."""
    done = {(r["model"], r["batch"], r["variant"]): r for r in rows if "first_s" in r}
    theirs = {
        (r["model"], r["batch"]): r
        for r in rows
        if r.get("variant") == "usual" and not {"skipped", "error"} & r.keys()
    }
    found = []
    for row in rows:
        row = dict(row)
        found.append(row)
        if {"skipped", "error"} & row.keys():
            continue
        place = row["model"], row["batch"]
        row["rows_s"] = 2 * row["batch"] / row["seconds"]
        if "estimate_bytes" in row:
            row["estimate"] = row["estimate_bytes"] / row["bytes"]
        if "loss_s" in row:
            row["loss_share"] = row["loss_s"] / row["seconds"]
        if place in theirs and row["variant"] != "usual":
            row["time_ratio"] = row["seconds"] / theirs[place]["seconds"]
            row["memory_ratio"] = row["bytes"] / theirs[place]["bytes"]
        plain = done.get((*place, "ours"))
        if row["variant"] == "ours, compile" and plain is not None:
            saved = plain["seconds"] - row["seconds"]
            row["break_even"] = round(row["first_s"] / saved) if saved > 0 else "never"
    return found


COLUMNS = (
    Column("model", "model"),
    Column("batch", "batch"),
    Column("variant", "variant"),
    Column("seconds", "s / step", ".3f"),
    Column("rows_s", "rows / s", ".2f"),
    Column("bytes", "GiB", ".2f", GIB),
    Column("time_ratio", "time / usual", ".2f"),
    Column("memory_ratio", "memory / usual", ".2f"),
    Column("estimate", "estimate", ".2f"),
    Column("loss_share", "loss's share", ".1%"),
    Column("break_even", "compiling pays after"),
)


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    return markdown(compared(rows), COLUMNS, labels=3)


def main(
    output: Annotated[Path, typer.Option(help="File of lines of JSON, added to.")] = Path(
        "runs/train_step.jsonl"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    models: Annotated[str, typer.Option(help="Of tiny, sd1, sdxl, flux.")] = "sd1,sdxl,flux",
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 8,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time every variant of every model."""
    if one:
        path, device, model, steps, common = json.loads(one)
        results = Results(Path(path), device, **common)
        run_family(results, model, steps)
        raise SystemExit(FAILED if results.failed else 0)
    results = Results(output, device)
    run(results, models.split(","), steps)
    print(table([r for r in newest(read(output)) if r["benchmark"] == "train_step"]))


if __name__ == "__main__":
    typer.run(main)
