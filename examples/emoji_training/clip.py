"""A tiny CLIP of the emoji art: which caption goes with which picture?

    loss = mean over pairs of -sum_j M_ij log softmax_j(s <text_i, image_j>)   and the transpose,

with M_ij the share of picture j among the pictures of the batch that caption i is true of: another
dog is no counter-example to "a dog emoji". Radford et al. (arXiv 2103.00020), with all the right
answers of a batch in place of one.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from diffusers_fdu.emoji.vocabulary import BACKGROUNDS, CONCEPTS, STYLES, SYNONYMS

from .art import SIZE, compose, sample_labels
from .captions import MAX_TOKENS, random_caption
from .judge import HELD_OUT_SEED, degraded
from .loop import cosine, train

STEPS = 2000
BATCH = 64
LEARNING_RATE = 1e-3
WIDTH = 128
MEAN, STD = 0.5, 0.5
"""Of every channel, as the pipeline's image processor is told."""


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of 64x64 pictures in patches of 8."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    text = {
        **shared,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def matches(captions: list[str], labels: Tensor) -> Tensor:
    """Whether each caption is true of each picture, (B, B) float.

    Args:
        captions: of the pictures.
        labels: (concept, style, background) of each picture, (B, 3).
    """
    words = [set(caption.split()) for caption in captions]
    ok = torch.ones(len(captions), len(labels), dtype=torch.bool)
    for column, names in enumerate((CONCEPTS, STYLES, BACKGROUNDS)):
        for k, name in enumerate(names):
            said = torch.tensor([bool({name, *SYNONYMS.get(name, ())} & own) for own in words])
            ok &= ~said[:, None] | (labels[:, column] == k)[None, :]
    return ok.float()


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Cross-entropy of both directions.

    Args:
        logits: (texts, images).
        match: whether a text is true of an image, (texts, images).
    """
    rows = match / match.sum(1, keepdim=True)
    columns = match / match.sum(0, keepdim=True)
    forward = -(rows * logits.log_softmax(1)).sum(1).mean()
    backward = -(columns * logits.log_softmax(0)).sum(0).mean()
    return (forward + backward) / 2


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> dict[str, Tensor]:
    """Token ids and mask, (B, MAX_TOKENS)."""
    return dict(
        tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
    )


def logits_of(
    model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], images: Tensor
) -> Tensor:
    """(texts, images) for images (B, 3, 64, 64) in [0, 1]."""
    device = images.device
    asked = {name: value.to(device) for name, value in tokens(tokenizer, texts).items()}
    return model(**asked, pixel_values=(images - MEAN) / STD).logits_per_text


def train_clip(
    sprites: Tensor,
    autoencoder: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    work_dir: Path,
    deadline: float,
    steps: int = STEPS,
) -> CLIPModel:
    """Train on degraded compositions, as the judge; returns the model in eval mode."""
    torch.manual_seed(3)
    model = new_clip(tokenizer).to(sprites.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    generator = torch.Generator()

    def step(i: int) -> dict[str, float]:
        generator.manual_seed(i)
        rng = random.Random(i)
        labels = sample_labels(BATCH, generator)
        texts = [random_caption(*row, rng) for row in labels.tolist()]
        said = [k for k, text in enumerate(texts) if text]
        with torch.no_grad():
            images = degraded(compose(sprites, labels, generator), autoencoder)
        logits = logits_of(model, tokenizer, [texts[k] for k in said], images[said])
        match = matches([texts[k] for k in said], labels[said]).to(logits.device)
        loss = contrastive_loss(logits, match)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(i, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item()}

    model.train()
    train("clip", {"model": model, "optimizer": optimizer}, steps, step, work_dir, deadline)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def zero_shot_accuracy(
    model: CLIPModel, tokenizer: CLIPTokenizer, sprites: Tensor, count: int = 2048
) -> dict[str, float]:
    """Zero-shot accuracy on clean compositions whose placements no training step saw."""
    asked = {
        "concept": [f"a {name} emoji" for name in CONCEPTS],
        "style": [f"an emoji in {name} style" for name in STYLES],
    }
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    right = dict.fromkeys(asked, 0.0)
    for _ in range(count // 256):
        labels = sample_labels(256, generator)
        images = compose(sprites, labels, generator)
        for column, (name, texts) in enumerate(asked.items()):
            found = logits_of(model, tokenizer, texts, images).argmax(0).cpu()
            right[name] += (found == labels[:, column]).float().sum().item()
    return {name: value / (count // 256 * 256) for name, value in right.items()}
