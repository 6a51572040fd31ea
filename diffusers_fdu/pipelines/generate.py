"""Pictures of a pipeline, each from a seed of its own."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from tqdm.auto import tqdm

from ..utils.micro_batches import MicroBatches
from .recorder import preserve_pipeline_state, repeat_negative_prompts

BATCH = 16


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = BATCH,
    progress: str | None = None,
    on_images: Callable[[list[Image]], None] | None = None,
    **arguments: Any,
) -> list[Image]:
    """Draw one picture of each prompt, with the pipe as it is; of a video its first frame.

    The noise of each picture comes from its own seed and is drawn on the CPU, so that a seed gives
    the same picture on every device and in every batch, but for rounding. The pipe's scheduler,
    its progress bar and the global random generators are left as they were.

    Up to `batch` pictures are drawn together, fewer whenever the memory runs out, and `on_images`
    is called with them at once. `progress` is the title of a progress bar, if there shall be one.
    `arguments` are the pipeline's; a text for a negative prompt counts for every picture.
    """
    rows = list(zip(prompts, seeds, strict=True))
    images: list[Image] = []

    def draw(part: Sequence[tuple[str, int]]) -> None:
        output = pipe(
            prompt=[prompt for prompt, _ in part],
            generator=[torch.Generator().manual_seed(seed) for _, seed in part],
            **repeat_negative_prompts({"output_type": "pil", **arguments}, len(part)),
        )
        drawn = output.images if hasattr(output, "images") else [f[0] for f in output.frames]
        if on_images is not None:
            on_images(drawn)
        images.extend(drawn)
        bar.update(len(part))

    bar = tqdm(total=len(rows), desc=progress, disable=progress is None, unit="image")
    with torch.no_grad(), preserve_pipeline_state(pipe), bar:
        MicroBatches(batch, "pictures").map(draw, rows)
    return images


def takes_argument(pipe: Any, name: str) -> bool:
    """Whether a call of the pipeline has this argument."""
    return name in inspect.signature(type(pipe).__call__).parameters


def check_pictures(pipe: Any) -> None:
    """Refuse pipelines that give no pictures, with a ValueError that says why."""
    if takes_argument(pipe, "num_frames"):
        raise ValueError(f"{type(pipe).__name__} draws videos, not pictures")
    if not (takes_argument(pipe, "output_type") and takes_argument(pipe, "generator")):
        raise ValueError(f"{type(pipe).__name__} gives no pictures")
