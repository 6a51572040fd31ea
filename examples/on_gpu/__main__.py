"""Measure on a GPU what the library is to be judged by, in one call of less than ten minutes.

    python -m examples.on_gpu                   # everything
    PARTS="2 6" python -m examples.on_gpu       # these parts, or --parts 2,6
    python -m examples.on_gpu --tiny            # that it runs, also without a GPU

Wheels in wheels/ are installed first, into a temporary folder, for machines without a network.
Then all that the parts need is imported once, and each part is forked from there.
$OUT, or runs/gpu, gets `results.jsonl`, a line for each measurement as soon as it is known, and
`log.txt`. A part that takes too long is stopped, one that fails leaves a line, and the others go
on; the exit code is 1 if any failed. `python -m examples.benchmarks.all --render FILE` puts the
lines into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from .driver import ROOT, Driver
from .plan import LIBRARIES, PARTS, chosen, modules
from .summary import summary


def main() -> int:
    """Run the parts that were asked for; 1 if any failed."""
    lines = [f"  {part.number} {part.name}, at most {part.limit:.0f} s" for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m examples.on_gpu",
        description=f"{__doc__}\nparts:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = "cuda" if shutil.which("nvidia-smi") else "cpu"
    parser.add_argument("--parts", default=os.environ.get("PARTS", ""), help="numbers; all")
    parser.add_argument("--deadline", type=float, default=480.0, help="seconds in all")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=here, help=here)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels")
    options = parser.parse_args()
    try:
        parts = chosen(options.parts)
    except ValueError as error:
        parser.error(str(error))
    if options.device == "cpu" and not options.tiny:
        parser.error("without a GPU only --tiny is of use")
    driver = Driver(options.out.resolve(), options.device, options.tiny, options.deadline)
    driver.install(options.wheels)
    if any(part.expected < driver.left for part in parts):
        driver.preload(LIBRARIES, modules(parts))
    driver.run(parts)
    print(summary(driver))
    return 1 if driver.failed else 0


if __name__ == "__main__":
    sys.exit(main())
