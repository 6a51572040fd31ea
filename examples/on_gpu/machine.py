"""What the machine is, and whether all that the other parts need can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess

import torch

from examples.benchmarks.lines import Results, Skipped
from examples.benchmarks.loss_kernel import clock

NEEDED = ("diffusers_fdu", "typer", "peft", "pytest", "xdist")
FOR_QUANTISED = ("bitsandbytes", "torchao", "gguf")


def run(results: Results, tiny: bool = False) -> None:
    """Ask it, and time a large matrix product."""
    device = results.device
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], timeout=20)
    for name in (*NEEDED, *FOR_QUANTISED):
        with results.attempt("machine", check=f"import {name}"):
            if device == "cpu" and importlib.util.find_spec(name) is None:
                raise Skipped("not installed")  # nor needed, where nothing runs on a GPU
            importlib.import_module(name)
    about = {}
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        about = {
            "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
        }
        about["cuda"] = torch.version.cuda
    with results.attempt("machine", check="matrix product"):
        side = 128 if tiny or device == "cpu" else 8192
        a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
        seconds = clock(device, lambda i: a @ b, 10) / 1e6
        rate = 2 * side**3 / seconds / 1e12
        results.add("machine", check="matrix product", seconds=seconds, tflops=rate, **about)
