"""A short table of what was measured, for a terminal."""

from __future__ import annotations

from examples.benchmarks.lines import IDENTITY, Row, newest, read

from .driver import Driver

MOST = 90  # lines
BULK = ("loss_kernel", "floors", "unlearn_about")  # of which only what failed is shown
GIB = 2**30


def summary(driver: Driver) -> str:
    """How each part ended, and the main figures of every line."""
    lines = [f"{name:10} {how:8} {s:5.0f} s" for name, (how, s) in driver.ended.items()]
    rows = newest(read(driver.results)) if driver.results.exists() else []
    shown = [r for r in rows if r["benchmark"] not in BULK or "error" in r or _is_sample(r)]
    lines += [_line(row) for row in shown]
    if len(lines) > MOST:
        lines = [*lines[:MOST], f"and {len(lines) - MOST} more in {driver.results.name}"]
    return "\n".join(lines)


def _is_sample(row: Row) -> bool:
    return row["benchmark"] == "loss_kernel" and row.get("f") == "hellinger" and not row["mask"]


def _line(row: Row) -> str:
    names = [str(row[key]) for key in IDENTITY if key != "device" and row.get(key)]
    label = f"{row.get('part', '')} {' '.join(names)}"
    for key in ("error", "skipped"):
        if key in row:
            return f"{label:64.64} {key}: {row[key]}"[:200]
    cells = [f"{label:64.64}"]
    if row["benchmark"] == "loss_kernel":
        cells += [f"{row['both_us']:7.0f} us", f"graph {row.get('graph_us') or 0:6.1f} us"]
    else:
        cells.append(f"{row['seconds']:8.3f} s")
    if row.get("bytes"):
        cells.append(f"{row['bytes'] / GIB:6.2f} GiB")
    if row.get("estimate_bytes"):
        cells.append(f"estimated {row['estimate_bytes'] / GIB:6.2f}")
    more = ("ua", "ira", "cra", "busy", "worst", "passed", "total_s", "tflops")
    cells += [f"{key} {row[key]:.3g}" for key in more if isinstance(row.get(key), int | float)]
    return " ".join(cells)
