"""Runs parts one after another, each in a process of its own, within a time of their own.

Only the standard library is imported: the wheels that the parts need may be installed here. What
they need is imported once, by a server that they are forked from; where that does not work, each
imports for itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.benchmarks.lines import LONGEST, Results, Row, read

from . import server
from .plan import Part
from .processes import ROOT, Process, Subprocess, ended

SLOWER = 6.0  # what limits are multiplied by in --tiny, which is for CPUs, too
LONGEST_LOG = 15 * 2**20  # bytes of the log that are kept
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # or to look for a GPU would initialise CUDA
    "TRITON_INTERPRET": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
PIP = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade")


@dataclass
class Driver:
    """Where parts run, and what is left of the time.

    Args:
        out: folder of `results.jsonl` and `log.txt`, which are added to.
        device: "cpu" or "cuda".
        tiny: every part in its smallest size.
        deadline: seconds after which no part runs any more.

    Attributes:
        ended: how each part ended, and after how many seconds.
    """

    out: Path
    device: str
    tiny: bool = False
    deadline: float = 480.0
    ended: dict[str, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        self.results, self.log = self.out / "results.jsonl", self.out / "log.txt"
        self.log.touch()
        self._start: Callable[..., Process] = Subprocess
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, **ENVIRONMENT}
        self.environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - (time.monotonic() - self.started)

    @property
    def failed(self) -> bool:
        """Whether any part failed."""
        return any(how == "failed" for how, _ in self.ended.values())

    def install(self, wheels: Path) -> None:
        """Put the wheels of a folder into a temporary one, from which the parts import."""
        files = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
        if not files:
            return
        self._site = tempfile.TemporaryDirectory(prefix="site-")  # as long as this object
        site = self._site.name
        part = Part(0, "wheels", 60, 0, (*PIP, "--target", site, *files))
        before = self.environment["PYTHONPATH"]
        self.environment["PYTHONPATH"] = os.pathsep.join((site, before))
        sys.path.insert(0, site)  # for the versions in the lines, and for what is forked
        self.run_part(part, own=False)

    def preload(
        self, libraries: Sequence[str], others: Sequence[str] = (), limit: float = 75
    ) -> None:
        """Import modules once, and fork the parts from there if that works.

        Args:
            libraries: what all parts need.
            others: what some need, which then fail if it cannot be imported.
            limit: seconds in which it has to be done.
        """
        part = Part(0, "imports", limit, 0, ("-m", "examples.on_gpu.check", self.device))
        job = server.Job(libraries, others, self.device, str(self.log), self._limit(part))
        server.prepare(job, self.environment)
        self._start = server.Fork
        self.run_part(part, own=False)
        if self.ended[part.name][0] != "ok":
            self._import_in_each()

    def run(self, parts: Sequence[Part]) -> None:
        """Run parts, as long as there is time for them."""
        for part in parts:
            if self.left < part.expected:
                reason = f"{max(0.0, self.left):.0f} s were left, it needs {part.expected:.0f}"
                self._add(part, skipped=reason)
                self.ended[part.name] = "skipped", 0.0
            else:
                self.run_part(part)
        self._cut_log()

    def run_part(self, part: Part, own: bool = True) -> None:
        """Run one part, and write a line if it left none that says why it failed.

        Args:
            part: what to run.
            own: whether it takes the options of a part and writes lines.
        """
        begun, known, limit = time.monotonic(), len(self._lines()), self._limit(part)
        command = list(part.command)
        if own:
            command += ["--results", str(self.results), "--device", self.device]
            command += ["--part", str(part.number), *(["--tiny"] if self.tiny else [])]
        start = self._note(f"part {part.number}, {part.name}, at most {limit:.0f} s")
        code = self._code(command, limit)
        written = self._lines()[known:]
        how = "ok" if code == 0 and (written or not own) else "failed"
        if how == "failed" and not any("error" in row for row in written):
            reasons = {None: f"stopped after {limit:.0f} s", 0: "it wrote no results"}
            reason = reasons.get(code, f"ended with {code}")
            self._add(part, error=f"{reason}: {self._last_words(start)}"[:LONGEST])
        self.ended[part.name] = how, time.monotonic() - begun
        print(f"{part.number} {part.name}: {how}, {self.ended[part.name][1]:.0f} s", flush=True)
        if code == server.ENDED:
            self._import_in_each()

    def _code(self, command: Sequence[str], limit: float) -> int | None:
        """The exit code of a command; None if it was stopped."""
        begun = time.monotonic()
        try:
            process = self._start(command, self.log, self.environment)
        except server.Ended:
            return server.ENDED
        return ended(process, max(0.0, limit - (time.monotonic() - begun)))

    def _import_in_each(self) -> None:
        """Fork nothing from now on."""
        if self._start is server.Fork:
            self._note("from here each part imports for itself, since nothing can be forked")
            self._start = Subprocess

    def _limit(self, part: Part) -> float:
        """Seconds that a part may take now."""
        return min(part.limit * (SLOWER if self.tiny else 1), self.left)

    def _note(self, text: str) -> int:
        """Add a line to the log; where it ends."""
        with self.log.open("ab") as log:
            log.write(f"\n=== {text}\n".encode())
            return log.tell()

    def _lines(self) -> list[Row]:
        return read(self.results) if self.results.exists() else []

    def _add(self, part: Part, **row: Any) -> None:
        common = {"part": part.number, **({"tiny": True} if self.tiny else {})}
        Results(self.results, self.device, **common).add("part", check=part.name, **row)

    def _last_words(self, start: int) -> str:
        """The last line that a part has logged."""
        with self.log.open("rb") as log:
            log.seek(start)
            words = log.read().decode(errors="replace").strip().splitlines()
        return words[-1] if words else "it logged nothing"

    def _cut_log(self) -> None:
        """Keep the log's end, if it is too long to be fetched."""
        if self.log.stat().st_size > LONGEST_LOG:
            with self.log.open("rb") as log:
                log.seek(-LONGEST_LOG, os.SEEK_END)
                end = log.read()
            self.log.write_bytes(end)
