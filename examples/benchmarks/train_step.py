"""Time and memory of one optimizer step on denoisers of real size, with random weights.

    python -m examples.benchmarks.train_step --output runs/train_step.json

Ours is `train` on a replay buffer of random rows; the other is the usual loop (`usual_loop`).
With a batch of B both put B rows to unlearn and B rows to retain through the student; the usual
loop also asks its teacher about B rows, encodes 2 B pictures and 3 B captions. `low_vram` asks
about the same rows one by one. On a GPU ours keeps the base in bfloat16, and the usual loop its
student in float32 under autocast and the rest in bfloat16; on the CPU all is float32. With 4-bit
the base's linear layers are NF4 of bitsandbytes. Every variant has a process of its own. Memory is
what PyTorch had allocated at most on the device, on the CPU the process's resident memory at most.
"estimate" is what `FDUnlearner.estimate` says of it, as a share.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from diffusers import DDIMScheduler

from diffusers_fdu import DivergenceLoss, Performance, TrainConfig, adapters, memory
from diffusers_fdu.config import DataConfig, Settings
from diffusers_fdu.objective import Objective
from diffusers_fdu.replay import ReplayBuffer
from diffusers_fdu.sampling import Sampler
from diffusers_fdu.train import train

from . import denoisers
from .denoisers import SIZES, Size
from .usual_loop import UsualConfig, UsualLoop

VARIANTS: dict[str, dict[str, bool]] = {
    "ours": {},
    "ours, gradient_checkpointing": {"gradient_checkpointing": True},
    "ours, compile": {"compile": True},
    "ours, low_vram": {"low_vram": True},
    "ours, 4-bit": {"four_bit": True},
    "ours, 4-bit, low_vram": {"four_bit": True, "low_vram": True},
    "usual": {},
}
ROWS, WARMUP = 8, 2
ACTIVATIONS_GIB = 6.0  # on top of the weights, roughly, for what fits
Row = dict[str, Any]


def measure(name: str, variant: str, device: str, batch: int, steps: int) -> Row:
    """One variant, in this process."""
    size = SIZES[name]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if variant == "usual":
        times, extra = _usual(size, device, dtype, batch, steps), 0.0
    else:
        times, extra, estimate = _ours(size, device, dtype, batch, steps, VARIANTS[variant])
    step = statistics.median(times)
    found: Row = {"model": name, "variant": variant, "batch": batch, "step_s": step}
    found |= {"samples_s": 2 * batch / step, "extra_s": extra, "memory_gib": _peak(device)}
    if variant != "usual":
        if device == "cuda":
            found["estimate"] = estimate / 2**30 / found["memory_gib"]
        found["loss_share"] = _loss_seconds(size, device, dtype, batch) / step
    return found


def _ours(
    size: Size, device: str, dtype: torch.dtype, batch: int, steps: int, options: dict[str, bool]
) -> tuple[list[float], float, int]:
    """Seconds of each step after warm-up, what the first took beyond, and estimated bytes."""
    model = denoisers.denoiser(size, device, dtype)
    options = dict(options)
    if options.pop("four_bit", False):
        denoisers.quantize(model)
    config = TrainConfig(
        steps=WARMUP + steps,
        batch_size=batch,
        learning_rate=1e-4,
        early_stop=0.0,
        target_modules=size.modules,
    )
    settings = Settings(config, DataConfig(), Performance(**options))
    if settings.performance.low_vram:
        settings = memory.small(settings, model)
    config, _, performance = settings
    buffer = _buffer(size, dtype)
    calls = [
        buffer.calls(buffer.entries("unlearn")[:rows], torch.device(device), dtype)[0].inputs
        for rows in (1, 2)
    ]
    estimate = sum(memory.measured(model, calls, settings))
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lora = adapters.lora_config(model, config.rank, None, size.modules)
    parameters = adapters.attach(model, "benchmark", lora, 0)
    sampler = Sampler(model, buffer, config.batch_size, 0)
    objective = Objective(DivergenceLoss("kl", 1.0), [torch.ones(4, device=device)], 1.0)
    marks = [time.perf_counter()]
    train(
        model,
        parameters,
        sampler,
        objective,
        config,
        lambda record: marks.append(time.perf_counter()),
        progress=False,
        performance=performance,
    )
    times = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    return times[WARMUP:], times[0] - statistics.median(times[WARMUP:]), estimate


def _buffer(size: Size, dtype: torch.dtype) -> ReplayBuffer:
    buffer = ReplayBuffer(dtype)
    if size.unet is None:
        # Rotary positions, the same for every row.
        text = torch.zeros(denoisers.FLUX_TOKENS, 3)
        buffer.constants = {"txt_ids": text, "img_ids": torch.zeros(denoisers.FLUX_PATCHES, 3)}
    for i in range(ROWS):
        state, text_leaves = denoisers.row(size, dtype)
        where, text_id = buffer.add_state(state), buffer.add_text(str(i), text_leaves)
        shape = state["sample" if size.unet else "hidden_states"].shape
        answer = buffer.add_prediction(torch.randn(shape))
        buffer.add_row("unlearn" if i % 2 else "retain", where, text_id, answer)
    return buffer


def _usual(size: Size, device: str, dtype: torch.dtype, batch: int, steps: int) -> list[float]:
    autocast = dtype if device == "cuda" else None
    encoders = denoisers.text_encoders(size, device, dtype)
    pipe = SimpleNamespace(
        unet=denoisers.denoiser(size, device, torch.float32),
        vae=denoisers.autoencoder(size, device, dtype),
        text_encoder=encoders[0],
        scheduler=DDIMScheduler(),
    )
    config = UsualConfig(batch_size=batch, accumulation=1, autocast=autocast)
    loop = UsualLoop(
        pipe, config, encode=lambda captions: denoisers.encode(encoders, len(captions), device)
    )
    images = torch.rand(ROWS, 3, size.image, size.image) * 2 - 1
    loop.start(images, [("a target", "an anchor")] * ROWS)
    times = []
    for _ in range(WARMUP + steps):
        begun = time.perf_counter()
        loop.step()  # reads its loss, which waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return times[WARMUP:]


def _loss_seconds(size: Size, device: str, dtype: torch.dtype, batch: int) -> float:
    """Forward and backward of both losses alone, at these shapes."""
    state, _ = denoisers.row(size, dtype)
    shape = (batch, *state["sample" if size.unet else "hidden_states"].shape)
    pred = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    target = torch.randn(shape, device=device)
    loss = DivergenceLoss("kl", 1.0)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(2):
            loss(pred, target).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def needed_gib(name: str, variant: str, device: str) -> float:
    """Memory that a variant needs, roughly."""
    weights = SIZES[name].parameters * 1e9 / 2**30
    bytes_each = 2 if device == "cuda" else 4
    if variant == "usual":  # the student in float32, and the teacher
        bytes_each = 4 + bytes_each
    return weights * bytes_each + (ACTIVATIONS_GIB if SIZES[name].parameters > 0.1 else 0)


def free_gib(device: str) -> float:
    """Memory of the device that is free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def run(device: str, models: list[str], batch: int = 2, steps: int = 8) -> list[Row]:
    """Every variant of every model, each in a process of its own."""
    rows: list[Row] = []
    for name in models:
        for variant in VARIANTS:
            if variant == "usual" and SIZES[name].unet is None:
                continue
            row: Row = {"model": name, "variant": variant, "batch": batch}
            needed, free = needed_gib(name, variant, device), free_gib(device)
            if VARIANTS[variant].get("four_bit") and (reason := denoisers.no_four_bit(device)):
                row["skipped"] = reason
            elif needed > free:
                row["skipped"] = f"needs about {needed:.0f} GiB, {free:.0f} are free"
            else:
                row |= _apart(name, variant, device, batch, steps)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    for row in rows:
        _compare(row, rows)
    return rows


def _apart(name: str, variant: str, device: str, batch: int, steps: int) -> Row:
    job = json.dumps([name, variant, device, batch, steps])
    command = [sys.executable, "-m", "examples.benchmarks.train_step", "--one", job]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"skipped": f"failed: {last[:120]}"}
    return json.loads(done.stdout.splitlines()[-1])


def _compare(row: Row, rows: list[Row]) -> None:
    """Ratios to the usual loop, and after how many steps compiling has paid."""
    same = {r["variant"]: r for r in rows if r["model"] == row["model"] and "step_s" in r}
    if "step_s" not in row:
        return
    if "usual" in same and row["variant"] != "usual":
        row["time_ratio"] = row["step_s"] / same["usual"]["step_s"]
        row["memory_ratio"] = row["memory_gib"] / same["usual"]["memory_gib"]
    if row["variant"] == "ours, compile" and "ours" in same:
        saved = same["ours"]["step_s"] - row["step_s"]
        row["break_even"] = round(row["extra_s"] / saved) if saved > 0 else "never"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    columns = {
        "step_s": ("s / step", ".3f"),
        "samples_s": ("rows / s", ".2f"),
        "memory_gib": ("GiB", ".2f"),
        "time_ratio": ("time / usual", ".2f"),
        "memory_ratio": ("memory / usual", ".2f"),
        "estimate": ("estimate", ".2f"),
        "loss_share": ("loss's share", ".1%"),
        "break_even": ("compiling pays after", ""),
    }
    titles = [title for title, _ in columns.values()]
    lines = [f"| model | batch | variant | {' | '.join(titles)} |"]
    lines.append("|---" * (3 + len(columns)) + "|")
    for row in rows:
        cells = [row["model"], str(row["batch"]), row["variant"]]
        for key, (_, form) in columns.items():
            cells.append(format(row[key], form) if key in row else "")
        if "skipped" in row:
            cells[3] = f"not run: {row['skipped']}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file.")] = Path("runs/train_step.json"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    models: Annotated[str, typer.Option(help="Of tiny, sd1, sdxl, flux.")] = "sd1,sdxl,flux",
    batch_size: Annotated[int, typer.Option(help="Rows of each role.")] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 8,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time every variant of every model."""
    if one:
        print(json.dumps(measure(*json.loads(one))))
        return
    rows = run(device, models.split(","), batch_size, steps)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
