"""The denoiser and its text encoder, trained together on a bank of latents encoded once."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .art import compose, sample_labels
from .captions import MAX_TOKENS, random_caption
from .loop import cosine, train

STEPS = 24000
BATCH = 32
LEARNING_RATE = 8e-4
BANK = 32768
TEXT_WIDTH = 128


def new_scheduler() -> DDIMScheduler:
    """DDIM on v-prediction; the schedule ends near pure noise, so plain backgrounds come out."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained two-layer CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet on 4x16x16 latents; text enters at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 5),  # heads of 32 channels, by diffusers' historical naming
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_bank(
    sprites: Tensor, autoencoder: AutoencoderTiny, seed: int, without: str | None = None
) -> tuple[Tensor, Tensor]:
    """Latents (BANK, 4, 16, 16) in half precision, and their labels (BANK, 3).

    Args:
        sprites: see `load_sprites`.
        autoencoder: encodes the pictures.
        seed: of the pictures.
        without: a concept or style that none of them shows.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = sample_labels(BANK, generator, without)
    chunks = [
        autoencoder.encode(compose(sprites, part, generator) * 2 - 1).latents.half()
        for part in labels.split(256)
    ]
    return torch.cat(chunks), labels


class Average(EMAModel):
    """The moving average; it stays beside the weights when a checkpoint is read."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, decay=0.9995, use_ema_warmup=True, power=0.75)
        self._device = parameters[0].device

    def load_state_dict(self, state_dict: dict) -> None:
        """Read a checkpoint, which lies on the CPU."""
        super().load_state_dict(state_dict)
        self.to(self._device)


class Denoiser:
    """UNet and text encoder with an exponential moving average of both."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.scheduler = new_scheduler()
        self.unet = new_unet().to(device, memory_format=torch.channels_last)
        self.text_encoder = new_text_encoder(tokenizer).to(device)
        self.parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.ema = Average(self.parameters)
        self._forward = torch.compile(self.unet)
        self._ids: dict[str, list[int]] = {}

    def load(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        """Start from trained weights instead of random ones."""
        self.unet.load_state_dict(unet.state_dict())
        self.text_encoder.load_state_dict(text_encoder.state_dict())
        self.ema = Average(self.parameters)

    def input_ids(self, captions: list[str]) -> Tensor:
        """Token ids (B, MAX_TOKENS)."""
        for text in set(captions) - self._ids.keys():
            self._ids[text] = self.tokenizer(
                text, padding="max_length", truncation=True, max_length=MAX_TOKENS
            ).input_ids
        return torch.tensor([self._ids[text] for text in captions])

    def loss(self, latents: Tensor, captions: list[str]) -> Tensor:
        """Mean squared error of the predicted velocity at uniform timesteps."""
        device = latents.device
        noise = torch.randn_like(latents)
        timestep = torch.randint(0, 1000, (len(latents),)).to(device)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        velocity = self.scheduler.get_velocity(latents, noise, timestep)
        text = self.text_encoder(self.input_ids(captions).to(device)).last_hidden_state
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return F.mse_loss(self._forward(noisy, timestep, text).sample, velocity)


def train_denoiser(
    denoiser: Denoiser,
    bank: tuple[Tensor, Tensor],
    work_dir: Path,
    deadline: float,
    steps: int = STEPS,
) -> Denoiser:
    """Train; on return the modules hold the averaged weights."""
    latents, labels = bank
    device = next(denoiser.unet.parameters()).device
    optimizer = torch.optim.AdamW(
        denoiser.parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01
    )
    bank_on_device, rows = latents.to(device), labels.tolist()

    def step(i: int) -> dict[str, float]:
        torch.manual_seed(i)
        rng = random.Random(i)
        picked = torch.randint(len(rows), (BATCH,))
        captions = [random_caption(*rows[k], rng) for k in picked.tolist()]
        loss = denoiser.loss(bank_on_device[picked.to(device)].float(), captions)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(i, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters, 1.0)
        optimizer.step()
        denoiser.ema.step(denoiser.parameters)
        return {"loss": loss.item()}

    state = {
        "unet": denoiser.unet,
        "text_encoder": denoiser.text_encoder,
        "ema": denoiser.ema,
        "optimizer": optimizer,
    }
    train("denoiser", state, steps, step, work_dir, deadline)
    denoiser.ema.copy_to(denoiser.parameters)
    return denoiser
