"""Run every benchmark that this machine can, and put the tables into docs/benchmarks.md.

    python -m examples.benchmarks.all --out runs/results.json

Each table stands in the page between two comments, such as `<!-- begin loss_kernel cuda -->` and
`<!-- end loss_kernel cuda -->`; the text around stays. What another machine has measured is put
there by

    python -m examples.benchmarks.all --render results.json
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import diffusers
import peft
import torch
import triton
import typer

from . import loss_kernel, time_to_erase, train_step

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
Rows = list[dict[str, Any]]
TABLES: dict[str, Callable[[Rows], str]] = {
    "loss_kernel": loss_kernel.table,
    "train_step": train_step.table,
    "time_to_erase": time_to_erase.table,
}


def jobs(device: str, tiny: bool) -> dict[str, Callable[[], Rows]]:
    """What runs here, by name: on the CPU one model, one row of each role."""
    models, batch, steps = (
        (["sd1", "sdxl", "flux"], 2, 20) if device == "cuda" else (["sd1"], 1, 2)
    )
    if tiny:
        models, batch, steps = ["tiny"], 1, 1
    return {
        "loss_kernel": lambda: loss_kernel.run(device, 2 if tiny else loss_kernel.REPEATS),
        "train_step": lambda: train_step.run(device, models, batch, steps),
        "time_to_erase": lambda: time_to_erase.run(device, tiny),
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "device": device,
        "name": f"{name} ({platform.machine()})",
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "diffusers": diffusers.__version__,
            "peft": peft.__version__,
        },
        "date": str(date.today()),
    }


def render(results: dict[str, Any], page: str) -> str:
    """The page with the tables of these results in it.

    Args:
        results: what `main` writes: a machine, and rows by benchmark.
        page: Markdown with markers.

    Raises:
        ValueError: if a marker is missing.
    """
    about = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    for name, rows in results["rows"].items():
        begin, end = (f"<!-- {w} {name} {about['device']} -->" for w in ("begin", "end"))
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise ValueError(f"the page needs {begin} and, after it, {end}, once each")
        before, rest = page.split(begin)
        table = f"{about['name']}; {versions}; {about['date']}.\n\n{TABLES[name](rows)}"
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return page


def main(
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/results.json"),
    docs: Annotated[Path, typer.Option(help="Page with the tables.")] = PAGE,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    only: Annotated[str, typer.Option(help="One benchmark.")] = "",
    tiny: Annotated[bool, typer.Option("--tiny", help="Smallest sizes, to try it.")] = False,
    from_file: Annotated[
        Path | None, typer.Option("--render", help="Results to render; nothing is run.")
    ] = None,
) -> None:
    """Run, write and render."""
    if from_file is not None:
        results = json.loads(from_file.read_text())
    else:
        results = {"machine": machine(device), "rows": {}}
        for name, job in jobs(device, tiny).items():
            if not only or only == name:
                results["rows"][name] = job()
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=2) + "\n")
    docs.write_text(render(results, docs.read_text()))


if __name__ == "__main__":
    typer.run(main)
