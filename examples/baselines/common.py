"""What the baselines share: prompts, pictures, noise, and full weights of cross-attention."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_fdu import Concept
from diffusers_fdu.data.concepts import Pair
from diffusers_fdu.pipelines.recorder import preserve_pipeline_state
from diffusers_fdu.pipelines.tokenizers import vocabulary

TRAINED = ("attn2.to_k", "attn2.to_v")
"""Keys and values of cross-attention."""
CROSS = (*TRAINED, "attn2.to_q", "attn2.to_out.0")
"""All of cross-attention."""
PICTURES, DRAW_STEPS, GUIDANCE = 96, 8, 4.0
"""As many pictures of the anchor as this library draws, in as many steps at most."""
HALF = 2  # bytes of a number in float16


@dataclass(frozen=True)
class Forgotten:
    """What a method cost.

    Args:
        seconds: of everything, drawing included.
        steps: of an optimizer; 0: closed form.
        bytes: of the weights that changed, in float16.
    """

    seconds: float
    steps: int
    bytes: int


class Bench:
    """A pipe whose UNet is to forget, and a frozen copy of it.

    Args:
        pipe: a Stable Diffusion pipeline; its `unet` becomes the student.
        concept: what is to be forgotten.
        seed: of prompts, noise and batches.
        trained: suffixes of the layers whose weights change.
    """

    def __init__(
        self, pipe: Any, concept: Concept, seed: int, trained: tuple[str, ...] = TRAINED
    ) -> None:
        self.pipe, self.concept, self.seed, self.trained = pipe, concept, seed, trained
        self.started = time.monotonic()
        self.generator = torch.Generator().manual_seed(seed)
        self.teacher = copy.deepcopy(pipe.unet).requires_grad_(False).eval()
        self.scheduler = pipe.scheduler
        pipe.unet.requires_grad_(False)
        self._texts: dict[str, Tensor] = {}

    def layers(self) -> list[nn.Linear]:
        """The student's layers that change."""
        named = self.pipe.unet.named_modules()
        return [module for name, module in named if name.endswith(self.trained)]

    def parameters(self) -> list[nn.Parameter]:
        """Their weights, trainable from now on."""
        return [p.requires_grad_(True) for layer in self.layers() for p in layer.parameters()]

    def pairs(self, count: int = PICTURES) -> list[Pair]:
        """The prompts that this library would draw."""
        words = vocabulary(self.pipe)
        return self.concept.prompt_pairs(count, words, random.Random(self.seed))

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Conditioning (B, L, D)."""
        device = self.pipe.unet.device
        for prompt in set(prompts) - self._texts.keys():
            self._texts[prompt] = self.pipe.encode_prompt(prompt, device, 1, False)[0][0]
        return torch.stack([self._texts[prompt] for prompt in prompts])

    @torch.no_grad()
    def pictures(self, prompts: Sequence[str]) -> Tensor:
        """Latents of pictures, one a prompt, drawn by the UNet as it is."""
        found = []
        with preserve_pipeline_state(self.pipe):
            for i in range(0, len(prompts), 16):
                part = list(prompts[i : i + 16])
                first = self.seed + i
                generators = [torch.Generator().manual_seed(first + k) for k in range(len(part))]
                run = {"num_inference_steps": DRAW_STEPS, "guidance_scale": GUIDANCE}
                out = self.pipe(part, generator=generators, output_type="latent", **run)
                found.append(out.images)
        return torch.cat(found)

    def noised(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t at random timesteps, the timesteps, and what a model should predict for x_t."""
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        steps = self.scheduler.config.num_train_timesteps
        t = torch.randint(steps, (len(latents),), generator=self.generator).to(latents.device)
        x = self.scheduler.add_noise(latents, noise, t)
        if self.scheduler.config.prediction_type == "v_prediction":
            noise = self.scheduler.get_velocity(latents, noise, t)
        return x, t, noise

    def picked(self, total: int, count: int) -> list[int]:
        """Random places."""
        return torch.randint(total, (count,), generator=self.generator).tolist()

    def train(self, loss: Callable[[], Tensor], steps: int, learning_rate: float) -> Forgotten:
        """AdamW on the layers' weights, with a constant rate, as the releases do."""
        parameters = self.parameters()
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0)
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None
        return self.forgotten(steps)

    def forgotten(self, steps: int) -> Forgotten:
        """What it took so far."""
        size = sum(p.numel() for layer in self.layers() for p in layer.parameters())
        return Forgotten(time.monotonic() - self.started, steps, HALF * size)
