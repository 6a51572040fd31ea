"""Scripts of this folder, run by one process or by two on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
TWO = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]


def run(script: str, *arguments: str, together: bool) -> str:
    """Run it; returns what it wrote to stderr."""
    paths = [*map(str, (TESTS, *TESTS.parents[:2])), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(paths), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(TWO if together else []), str(TESTS / script), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=500
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stderr
