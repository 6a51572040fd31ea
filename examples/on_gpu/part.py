"""Run one part: python -m examples.on_gpu.part MODULE:FUNCTION --results FILE ..."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from examples.benchmarks.lines import Results


def main() -> None:
    """Call a function with results and whether to be tiny; exit with 1 if a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="module:function")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    module, _, function = options.target.partition(":")
    run = getattr(importlib.import_module(module), function)
    common = {"part": options.part, **({"tiny": True} if options.tiny else {})}
    results = Results(options.results, options.device, **common)
    run(results, tiny=options.tiny)
    sys.exit(1 if results.failed else 0)


if __name__ == "__main__":
    main()
