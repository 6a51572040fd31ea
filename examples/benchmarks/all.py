"""Run every benchmark that this machine can, and put the tables into docs/benchmarks.md.

    python -m examples.benchmarks.all --out runs/results.jsonl

Each table stands in the page between two comments, such as `<!-- begin loss_kernel cuda -->` and
`<!-- end loss_kernel cuda -->`; the text around stays. What another machine has measured, such as
`python -m examples.on_gpu` on one with a GPU, is put there by

    python -m examples.benchmarks.all --render results.jsonl
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from examples.on_gpu import tables as on_gpu

from . import loss_kernel, time_to_erase, train_step, whole
from .lines import PACKAGES, Results, newest, read

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
Rows = list[dict[str, Any]]
TABLES: dict[str, Callable[[Rows], str]] = {
    "loss_kernel": loss_kernel.table,
    "train_step": train_step.table,
    "time_to_erase": time_to_erase.table,
}
GPU_TABLES: dict[str, Callable[[Rows], str]] = {
    "unlearn": whole.table,
    "works": on_gpu.works,
    "profile": on_gpu.profile,
    "gpu_tests": on_gpu.gpu_tests,
}
"""Of what is measured on a GPU alone, beside the table of memory, which every benchmark feeds."""


def jobs(results: Results, tiny: bool) -> dict[str, Callable[[], None]]:
    """What runs here, by name: on the CPU one model, one row of each role."""
    models, steps = (["sd1", "sdxl", "flux"], 20) if results.device == "cuda" else (["sd1"], 2)
    if tiny:
        models, steps = ["tiny"], 1
    return {
        "loss_kernel": lambda: loss_kernel.run(results, tiny),
        "train_step": lambda: train_step.run(results, models, steps),
        "time_to_erase": lambda: time_to_erase.run(results, tiny),
    }


def render(rows: Rows, page: str) -> str:
    """The page with the tables of these results in it; tables without results stay.

    Args:
        rows: lines of `Results`.
        page: Markdown with markers.

    Raises:
        ValueError: if a marker is missing, or the results are of a try in the smallest sizes.
    """
    if any(row.get("tiny") for row in rows):
        raise ValueError("these are results of --tiny, which show that it runs and nothing else")
    rows = newest(rows)
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        for name, table in (TABLES | GPU_TABLES).items():
            if found := [row for row in own if row["benchmark"] == name]:
                page = replaced(page, f"{name} {device}", f"{heading(found)}\n\n{table(found)}")
        if device == "cuda" and (known := [row for row in own if row.get("estimate_bytes")]):
            table = f"{heading(known)}\n\n{whole.memory_table(known)}"
            page = replaced(page, "memory cuda", table)
    return page


def heading(rows: Rows) -> str:
    """Where and when the rows were measured."""
    last = rows[-1]
    versions = [f"{p} {last['versions'][p]}" for p in PACKAGES if p in last["versions"]]
    driver = [f"driver {last['driver']}"] if last.get("driver") else []
    return "; ".join([last["name"], ", ".join([*driver, *versions]), last["date"]]) + "."


def replaced(page: str, name: str, text: str) -> str:
    """The page with the text between the two comments of that name.

    Raises:
        ValueError: if they are not there.
    """
    begin, end = (f"<!-- {word} {name} -->" for word in ("begin", "end"))
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs {begin} and, after it, {end}, once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main(
    out: Annotated[Path, typer.Option(help="File of lines of JSON, added to.")] = Path(
        "runs/results.jsonl"
    ),
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
    if from_file is None:
        results = Results(out, device, **({"tiny": True} if tiny else {}))
        for name, job in jobs(results, tiny).items():
            if not only or only == name:
                job()
    if not tiny:
        docs.write_text(render(read(from_file or out), docs.read_text()))


if __name__ == "__main__":
    typer.run(main)
