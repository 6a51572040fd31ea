"""Train the embedded emoji pipeline and its judge, and write exactly what the package ships.

    pip install -e ".[train]"
    mkdir art && cd art && npm install @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 \
        @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 && cd ..
    python examples/train_emoji.py --art art --work-dir runs/emoji

Every stage (autoencoder, judge, denoiser) saves a checkpoint in the work dir every two minutes;
the same command goes on from there. `--minutes 9` stops in time and exits with code 3, for
machines that are lent in stretches. `--continue-shipped` starts the denoiser from the weights
in the package, with the shipped autoencoder and judge, instead of from nothing.

`--without dog` trains an oracle: the same model from nothing, with the shipped autoencoder and
judge, on the same art without a single dog, and no caption that says dog or puppy. It shows how
much of a concept attacks bring out of a model that never saw it. What the package ships of it are
denoiser and text encoder in 8 bits, `model.safetensors` in the work dir, of 7000 steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from emoji_training.art import load_sprites
from emoji_training.autoencoder import train_autoencoder
from emoji_training.captions import build_tokenizer
from emoji_training.denoiser import Denoiser, encode_bank, train_denoiser
from emoji_training.eight_bits import to_8_bits
from emoji_training.judge import held_out_accuracy, train_judge
from emoji_training.loop import OutOfTime
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from diffusers_fdu.emoji.classifier import EmojiJudge, JudgeNetwork
from diffusers_fdu.emoji.loading import WEIGHTS, load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import CONCEPTS, STYLES
from diffusers_fdu.evaluation.emoji import accuracy, cells, judge_cells


def main(
    art: Annotated[Path, typer.Option(help="Folder with the npm art in node_modules.")],
    work_dir: Annotated[Path, typer.Option(help="Folder of the checkpoints.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Where the weights go; none: the package, or work-dir/oracle."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this long; 0: never.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of the denoiser.")] = 24000,
    continue_shipped: Annotated[bool, typer.Option(help="Start from shipped weights.")] = False,
    without: Annotated[str | None, typer.Option(help="A concept or style never shown.")] = None,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train (or go on training) the embedded model."""
    if without is not None and without not in (*CONCEPTS, *STYLES):
        raise typer.BadParameter(f"{without!r} is no concept or style of the embedded model")
    if output_dir is None:
        output_dir = WEIGHTS if without is None else work_dir / "oracle"
    deadline = time.monotonic() + (minutes * 60 if minutes else float("inf"))
    work_dir.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(art).to(device)
    try:
        if continue_shipped or without is not None:
            shipped = load_emoji_pipeline()
            autoencoder = shipped.vae.to(device)
            judge = load_emoji_judge().network.to(device)
            denoiser = Denoiser(shipped.tokenizer, torch.device(device))
            if without is None:
                denoiser.load(shipped.unet, shipped.text_encoder)
        else:
            autoencoder = train_autoencoder(sprites, work_dir, deadline)
            judge = train_judge(sprites, autoencoder, work_dir, deadline)
            tokenizer = build_tokenizer(work_dir / "tokenizer")
            denoiser = Denoiser(tokenizer, torch.device(device))
        bank = encode_bank(sprites, autoencoder, seed=2, without=without)
        train_denoiser(denoiser, bank, work_dir, deadline, steps)
    except OutOfTime as stage:
        print(f"out of time in stage {stage}: run the same command to go on", file=sys.stderr)
        raise typer.Exit(3) from None
    export(denoiser, autoencoder, judge, denoiser.tokenizer, output_dir)
    if without is not None:
        export_oracle(output_dir, work_dir / "model.safetensors")
    figures = {
        "judge_held_out": held_out_accuracy(judge, sprites),
        "generated": generated_accuracy(output_dir, judge, without),
    }
    (output_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def export(
    denoiser: Denoiser,
    autoencoder: AutoencoderTiny,
    judge: JudgeNetwork,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> None:
    """Write pipeline and judge in half precision."""
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=denoiser.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    # AutoencoderTiny sets this one itself, and warns when it reads it.
    config = json.loads((folder / "vae" / "config.json").read_text())
    config.pop("block_out_channels", None)
    (folder / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {key: value.cpu().contiguous() for key, value in judge.state_dict().items()}
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()},
        folder / "judge.safetensors",
    )
    pipe.to(torch.float32)


def export_oracle(folder: Path, file: Path) -> None:
    """Write denoiser and text encoder in 8 bits, which is what the package ships."""
    pipe, tensors = load_emoji_pipeline(folder), {}
    for part in ("unet", "text_encoder"):
        for name, value in getattr(pipe, part).state_dict().items():
            tensors.update(to_8_bits(f"{part}.{name}", value))
    save_file(tensors, file)


def generated_accuracy(
    folder: Path, judge: JudgeNetwork, without: str | None = None
) -> dict[str, float]:
    """Accuracy over every concept x style, 5 seeds each, as the written pipeline draws them."""
    pipe, seeds = load_emoji_pipeline(folder), range(5)
    asked = [cell for cell in cells() if without not in cell]
    verdicts = judge_cells(pipe, EmojiJudge(judge.cpu()), asked, seeds, progress="check")
    concept, style = accuracy(verdicts)
    return {"concept": concept, "style": style, "images": len(verdicts)}


if __name__ == "__main__":
    typer.run(main)
