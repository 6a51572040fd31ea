"""Draw pictures into a folder, alone or by several processes together."""

from __future__ import annotations

from conftest import build_tiny_pipe

from diffusers_fdu.evaluation.images import Request, draw
from diffusers_fdu.utils.distributed import Processes


def main(folder: str) -> None:
    requests = [Request(prompt, i, "target") for i, prompt in enumerate(["a dog", "a cat"] * 3)]
    settings = {"num_inference_steps": 2}
    found = draw(build_tiny_pipe(), requests, settings, folder, 1, Processes(True))
    assert len(found.images) == len(requests)
