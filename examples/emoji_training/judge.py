"""The judge's training: compositions, degraded a little so that a soft picture is still judged."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from diffusers_fdu.emoji.classifier import JudgeNetwork

from .art import compose, sample_labels
from .loop import cosine, train

STEPS = 1500
BATCH = 64
LEARNING_RATE = 2e-3
HELD_OUT_SEED = 10**9  # no training step uses it


def degraded(images: Tensor, autoencoder: AutoencoderTiny) -> Tensor:
    """Half the images through the autoencoder, a quarter blurred, noise on all."""
    half = len(images) // 2
    latents = autoencoder.encode(images[:half] * 2 - 1).latents
    latents = latents + 0.3 * torch.rand_like(latents[:, :1, :1, :1]) * torch.randn_like(latents)
    decoded = (autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    images = torch.cat([decoded, images[half:]])
    blurred = F.avg_pool2d(images[::4], 3, stride=1, padding=1, count_include_pad=False)
    images[::4] = blurred
    noise = 0.05 * torch.rand_like(images[:, :1, :1, :1])
    return (images + noise * torch.randn_like(images)).clamp(0, 1)


def train_judge(
    sprites: Tensor,
    autoencoder: AutoencoderTiny,
    work_dir: Path,
    deadline: float,
    steps: int = STEPS,
) -> JudgeNetwork:
    """Train on degraded compositions; returns the network in eval mode."""
    torch.manual_seed(1)
    network = JudgeNetwork().to(sprites.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    generator = torch.Generator()

    def step(i: int) -> dict[str, float]:
        generator.manual_seed(i)
        labels = sample_labels(BATCH, generator)
        with torch.no_grad():
            images = degraded(compose(sprites, labels, generator), autoencoder)
        concept, style = network(images.contiguous(memory_format=torch.channels_last))
        labels = labels.to(concept.device)
        loss = F.cross_entropy(concept, labels[:, 0], label_smoothing=0.05)
        loss = loss + F.cross_entropy(style, labels[:, 1], label_smoothing=0.05)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(i, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = (concept.argmax(1) == labels[:, 0]).float().mean().item()
        return {"loss": loss.item(), "concept": right}

    network.train()
    state = {"model": network, "optimizer": optimizer}
    train("judge", state, steps, step, work_dir, deadline)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def held_out_accuracy(
    network: JudgeNetwork, sprites: Tensor, count: int = 8192
) -> dict[str, float]:
    """Accuracy on clean compositions whose placements no training step saw."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    right = torch.zeros(2)
    for _ in range(count // 256):
        labels = sample_labels(256, generator)
        logits = network(compose(sprites, labels, generator))
        answers = torch.stack([head.argmax(1).cpu() for head in logits], dim=1)
        right += (answers == labels[:, :2]).float().sum(0)
    concept, style = (right / (count // 256 * 256)).tolist()
    return {"concept": concept, "style": style}
