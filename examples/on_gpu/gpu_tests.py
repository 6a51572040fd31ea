"""The tests that need a GPU, all at once: a line for each that fails, and a count."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from examples.benchmarks.lines import LONGEST, Results

FILES = (
    "tests/test_gpu.py",
    "tests/divergences/test_triton_launch.py",
    "tests/training/test_quantised.py",
)
WORKERS = 8
TIMEOUT = 60  # seconds for one test, where pytest-timeout is installed
FEW = "idle_parts or (families and flux and None)"  # what shows that tests run
VARIABLE = "ON_GPU_RESULTS"  # tells the plugin where its lines go
COUNTED = {"passed": "passed", "failed": "failed", "skipped": "left_out"}
"""Outcomes of tests, and the fields that count them; `skipped` is that of a whole line."""


def run(results: Results, tiny: bool = False) -> None:
    """Run pytest; the lines are written by this module as its plugin."""
    if results.device != "cuda":
        results.add("gpu_tests", check="all", skipped="they need a CUDA device")
        return
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-m", "gpu", *FILES]
    command += ["-p", "no:cacheprovider", "-p", __name__]
    command += ["-k", FEW] if tiny else ["-n", str(WORKERS)]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", str(TIMEOUT)]
    job = json.dumps([str(results.path), results.device, results.common])
    done = subprocess.run(command, env={**os.environ, VARIABLE: job})
    results.failed = done.returncode != 0


class Reporter:
    """A plugin of pytest that writes lines."""

    def __init__(self, results: Results) -> None:
        self.results, self.begun = results, time.monotonic()
        self.counts = dict.fromkeys(COUNTED.values(), 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test, and write a line if it failed."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[COUNTED[report.outcome]] += 1
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else report.longreprtext.strip()
            about = {"check": report.nodeid, "seconds": report.duration}
            self.results.add("gpu_tests", **about, error=reason[:LONGEST] or "no message")

    def pytest_sessionfinish(self) -> None:
        """Write the counts."""
        seconds = time.monotonic() - self.begun
        self.results.add("gpu_tests", check="all", seconds=seconds, **self.counts)


def pytest_configure(config: Any) -> None:
    """Where pytest loads this module, and not in its workers: register the plugin."""
    if VARIABLE in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        path, device, common = json.loads(os.environ[VARIABLE])
        config.pluginmanager.register(Reporter(Results(Path(path), device, **common)))
