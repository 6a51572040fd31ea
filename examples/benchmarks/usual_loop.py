"""The loop that unlearning usually runs, to compare with.

Written from the descriptions of concept ablation (Kumari et al., arXiv 2303.13516) and of f-DMU
(arXiv 2509.21167): images of anchor prompts are drawn first; every step encodes some of them with
the autoencoder and their captions with the text encoder, adds noise, asks a second, frozen copy of
the UNet about the anchor's caption, and moves the student's answer to the target's caption there,
by mean squared error. The keys' and values' weights of cross-attention are trained themselves. A
prior-preservation term asks the student for the noise of the same images under their own captions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

TRAINED = ("attn2.to_k", "attn2.to_v")
DRAW_BATCH = 16
Encoded = dict[str, Tensor]


@dataclass(frozen=True)
class UsualConfig:
    """What the releases of both papers set.

    Args:
        images: anchor images drawn before training.
        draw_steps: of the solver that draws them.
        guidance_scale: of the same.
        steps: optimizer steps.
        batch_size: images in a micro-batch.
        accumulation: micro-batches in a step.
        learning_rate: of AdamW, constant.
        prior_weight: of the prior-preservation term; 0 leaves it out.
        seed: of noise and batches.
        autocast: dtype on an accelerator: the student stays in float32 under autocast, what is
            frozen is cast; None: all in the pipe's dtype.
    """

    images: int = 1000
    draw_steps: int = 25
    guidance_scale: float = 6.0
    steps: int = 500
    batch_size: int = 2
    accumulation: int = 2
    learning_rate: float = 2.8e-4
    prior_weight: float = 0.1
    seed: int = 0
    autocast: torch.dtype | None = None


class UsualLoop:
    """Concept ablation as usual, on a pipe with a UNet.

    Args:
        pipe: its `unet` becomes the student.
        config: see `UsualConfig`.
        encode: captions to the UNet's text arguments; None: as Stable Diffusion 1 does.
    """

    def __init__(
        self,
        pipe: Any,
        config: UsualConfig,
        encode: Callable[[Sequence[str]], Encoded] | None = None,
    ) -> None:
        self.pipe, self.config = pipe, config
        self.device = next(pipe.unet.parameters()).device
        self.encode = encode or self._encode
        self.noise = DDPMScheduler.from_config(pipe.scheduler.config)
        self.generator = torch.Generator().manual_seed(config.seed)

    def draw(self, prompts: Sequence[str]) -> Tensor:
        """The anchor's images, one a prompt, (N, 3, H, W) in [-1, 1] on the CPU."""
        scheduler, config = self.pipe.scheduler, self.config
        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
        images = []
        for i in range(0, len(prompts), DRAW_BATCH):
            part = list(prompts[i : i + DRAW_BATCH])
            seeds = range(config.seed + i, config.seed + i + len(part))
            drawn = self.pipe(
                part,
                num_inference_steps=config.draw_steps,
                guidance_scale=config.guidance_scale,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                output_type="pt",
            ).images
            images.append(drawn.float().cpu() * 2 - 1)
        self.pipe.scheduler = scheduler
        return torch.cat(images)

    def start(self, images: Tensor, captions: Sequence[tuple[str, str]]) -> None:
        """Copy the teacher and make the optimizer.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            captions: the target's and the anchor's caption of each.
        """
        pipe, dtype = self.pipe, self.config.autocast
        self.images, self.captions = images, list(captions)
        self.teacher = copy.deepcopy(pipe.unet).requires_grad_(False).eval()
        if dtype is not None:
            pipe.unet.float()
            for module in (self.teacher, pipe.vae, pipe.text_encoder):
                module.to(dtype)
        pipe.unet.requires_grad_(False)
        self.parameters: list[nn.Parameter] = []
        for name, module in pipe.unet.named_modules():
            if name.endswith(TRAINED):
                self.parameters += list(module.requires_grad_(True).parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, self.config.learning_rate)

    def step(self) -> float:
        """One optimizer step; the mean loss of its micro-batches."""
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.config.accumulation):
            loss = self.loss() / self.config.accumulation
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return total

    def loss(self) -> Tensor:
        """Of one micro-batch."""
        config = self.config
        latents, picked = self._latents(config.batch_size)
        target, anchor = zip(*(self.captions[i] for i in picked), strict=True)
        x, t, _ = self._noised(latents)
        with torch.no_grad(), self._autocast():
            wanted = self.teacher(x, t, **self.encode(anchor))[0]
        with self._autocast():
            answer = self.pipe.unet(x, t, **self.encode(target))[0]
        loss = (answer.float() - wanted.float()).square().mean()
        if config.prior_weight:
            latents, picked = self._latents(config.batch_size)
            x, t, noise = self._noised(latents)
            with self._autocast():
                own = self.encode([self.captions[i][1] for i in picked])
                answer = self.pipe.unet(x, t, **own)[0]
            loss = loss + config.prior_weight * (answer.float() - noise.float()).square().mean()
        return loss

    def _autocast(self) -> AbstractContextManager:
        dtype = self.config.autocast
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @torch.no_grad()
    def _latents(self, count: int) -> tuple[Tensor, list[int]]:
        vae = self.pipe.vae
        picked = torch.randint(len(self.images), (count,), generator=self.generator).tolist()
        parameter = next(vae.parameters())
        encoded = vae.encode(self.images[picked].to(parameter.device, parameter.dtype))
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.sample()
        else:
            latents = encoded.latents
        return latents * vae.config.scaling_factor, picked

    def _noised(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, their timesteps, and what the model should predict for them."""
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        steps = self.noise.config.num_train_timesteps
        t = torch.randint(steps, (len(latents),), generator=self.generator).to(latents.device)
        x: Any = self.noise.add_noise(latents, noise, t)
        if self.noise.config.prediction_type == "v_prediction":
            noise = self.noise.get_velocity(latents, noise, t)  # type: ignore[arg-type]
        return x.to(next(self.pipe.unet.parameters()).dtype), t, noise

    @torch.no_grad()
    def _encode(self, captions: Sequence[str]) -> Encoded:
        tokenizer = partial(self.pipe.tokenizer, padding="max_length", truncation=True)
        limit = self.pipe.tokenizer.model_max_length
        ids = tokenizer(list(captions), max_length=limit, return_tensors="pt").input_ids
        return {"encoder_hidden_states": self.pipe.text_encoder(ids.to(self.device))[0]}
