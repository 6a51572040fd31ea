"""The kernels compile for a device; what they compute is tested through `launch`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which is for Linux")

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffusers_fdu.divergences.triton import kernels

F = "*fp32"
OF_MASK = dict.fromkeys(("size", "stride", "every", "period"), "i32")


def build(kernel, types, **constants):
    types = types | dict.fromkeys(constants, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


for dtype in ("*fp32", "*bf16", "*fp16"):
    block = {"HAS_MASK": True, "BLOCK": 1024}
    inputs = {"pred": dtype, "target": F, "mask": F, **OF_MASK}
    sums = {"sums": F, "counts": F, "per_split": "i32"}
    build(kernels.sums_kernel, inputs | sums, **block)
    build(kernels.gradient_kernel, inputs | {"slope": F, "upstream": F, "grad": dtype}, **block)
for number in ("fp32", "fp64"):  # of a call, and of a compiled graph
    pointers = dict.fromkeys(
        ("sums", "counts", "weights", "table", "loss", "distance", "slope"), F
    )
    sizes = dict.fromkeys(("batch", "splits", "size", "knots"), "i32")
    numbers = dict.fromkeys(("square", "rate", "scale", "first", "step", "decay", "cap"), number)
    flags = {"HAS_MASK": True, "HAS_WEIGHTS": True, "IS_MEAN": True}
    for kind in range(4):
        rest = {"KIND": kind, "BLOCK_B": 16, "BLOCK_S": 32}
        build(kernels.loss_kernel, pointers | sizes | numbers, **flags, **rest)
"""


def test_kernels_compile_for_a_device(tmp_path) -> None:
    """Triton brings the assembler, so no device is needed."""
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    (tmp_path / "build.py").write_text(COMPILE)
    command = [sys.executable, str(tmp_path / "build.py")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
