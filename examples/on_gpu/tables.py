"""Tables of what only `python -m examples.on_gpu` measures."""

from __future__ import annotations

from typing import Any

from examples.benchmarks.tables import Column, markdown

Rows = list[dict[str, Any]]
SHOWN = 10  # operations of a profile

WORKS = (
    Column("check", "check"),
    Column("worst", "gradient's error", ".1e"),
    Column("worst_loss", "loss's error", ".1e"),
    Column("profile", "worst profile"),
    Column("ua", "UA", ".3f"),
    Column("ira", "IRA", ".3f"),
    Column("cra", "CRA", ".3f"),
    Column("images", "pictures"),
    Column("steps", "steps"),
    Column("record_s", "record s", ".1f"),
    Column("train_s", "train s", ".1f"),
)
STEPS = (
    Column("model", "model"),
    Column("batch", "batch"),
    Column("variant", "memory format"),
    Column("seconds", "s / step", ".3f"),
    Column("busy", "GPU busy", ".0%"),
    Column("launches", "launches / step"),
)
OPERATIONS = (
    Column("name", "operation"),
    Column("batch", "batch"),
    Column("ms", "GPU ms / step", ".2f"),
    Column("share", "share", ".0%"),
    Column("calls", "calls / step"),
)
TESTS = (
    Column("check", "tests"),
    Column("passed", "passed"),
    Column("failed", "failed"),
    Column("left_out", "skipped"),
    Column("seconds", "s", ".0f"),
)


def works(rows: Rows) -> str:
    """Whether it works."""
    return markdown(rows, WORKS)


def profile(rows: Rows) -> str:
    """Seconds of a step, and its longest operations in the plain memory format."""
    operations = []
    for row in rows:
        if row.get("variant") != "contiguous" or "gpu_top" not in row:
            continue
        for name, micros, calls in row["gpu_top"][:SHOWN]:
            share = micros / 1e6 / row["seconds"]
            found = {"name": f"`{name}`", "batch": row["batch"], "calls": calls}
            operations.append({**found, "ms": micros / 1e3, "share": share})
    tables = [markdown(rows, STEPS, labels=3)]
    if operations:
        tables.append(markdown(operations, OPERATIONS))
    return "\n\n".join(tables)


def gpu_tests(rows: Rows) -> str:
    """How many tests passed, and what failed."""
    return markdown(rows, TESTS)
