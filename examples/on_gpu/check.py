"""Check that a forked process can do what a part does: python -m examples.on_gpu.check DEVICE."""

from __future__ import annotations

import sys


def main(device: str) -> None:
    """Raise, or exit with a reason, if nothing was imported before or if CUDA cannot be used."""
    if "examples.on_gpu.preloaded" not in sys.modules:
        sys.exit("nothing was imported before")
    if device == "cuda":
        import torch

        torch.zeros(1, device="cuda").item()


if __name__ == "__main__":
    main(sys.argv[1])
