"""The autoencoder: 64x64 images to latents of 4 channels at 16x16, near unit scale."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .art import compose, sample_labels
from .loop import cosine, train

STEPS = 6000
BATCH = 16
LEARNING_RATE = 2e-3
LATENT_NOISE = 0.1  # makes the decoder tolerant of the denoiser's small errors


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder, 4 times smaller on each side, 4 channels."""
    widths = (32, 32, 32)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )


def reconstruction_loss(output: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """L1 of pixels, and with it L1 of their differences, which keeps edges sharp."""
    error = output - images
    l1 = error.abs().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return l1 + 0.5 * edges, l1


def train_autoencoder(
    sprites: Tensor, work_dir: Path, deadline: float, steps: int = STEPS
) -> AutoencoderTiny:
    """Train on random compositions; returns the model in eval mode."""
    device = sprites.device
    torch.manual_seed(0)
    model = new_autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0
    )
    encode, decode = torch.compile(model.encoder), torch.compile(model.decoder)
    generator = torch.Generator()

    def step(i: int) -> dict[str, float]:
        generator.manual_seed(i)
        images = compose(sprites, sample_labels(BATCH, generator), generator) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        latents = encode(images)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        output = decode(latents + LATENT_NOISE * torch.randn_like(latents))
        loss, l1 = reconstruction_loss(output, images)
        loss = loss + 0.01 * (mean.square() + (std - 1).square()).mean()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(i, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item(), "l1": l1.item()}

    state = {"model": model, "optimizer": optimizer}
    train("autoencoder", state, steps, step, work_dir, deadline)
    return model.eval().requires_grad_(False)
