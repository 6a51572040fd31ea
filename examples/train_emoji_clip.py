"""Train the tiny CLIP that measures the embedded model, and write what the package ships.

    python examples/train_emoji_clip.py --art art --work-dir runs/emoji

The art and the checkpoints are those of `train_emoji.py`, the tokenizer and the autoencoder those
of the shipped pipeline.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from emoji_training.art import load_sprites
from emoji_training.clip import MEAN, STD, STEPS, train_clip, zero_shot_accuracy
from transformers import CLIPImageProcessor

from diffusers_fdu.emoji.loading import CLIP_WEIGHTS, load_emoji_pipeline


def main(
    art: Annotated[Path, typer.Option(help="Folder with the npm art in node_modules.")],
    work_dir: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    output_dir: Annotated[Path, typer.Option(help="Where the weights go.")] = CLIP_WEIGHTS,
    minutes: Annotated[float, typer.Option(help="Stop after this long; 0: never.")] = 0,
    steps: Annotated[int, typer.Option()] = STEPS,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train (or go on training) the CLIP."""
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    work_dir.mkdir(parents=True, exist_ok=True)
    sprites, pipe = load_sprites(art).to(device), load_emoji_pipeline()
    model = train_clip(sprites, pipe.vae.to(device), pipe.tokenizer, work_dir, deadline, steps)
    figures = {"zero_shot_held_out": zero_shot_accuracy(model, pipe.tokenizer, sprites)}
    model.half().save_pretrained(output_dir)
    side = {"height": 64, "width": 64}
    processor = CLIPImageProcessor(
        size=side, do_resize=True, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    processor.save_pretrained(output_dir)
    (output_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
