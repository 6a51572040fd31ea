"""What a training is told, settled before it begins: its loss, its start, its open options."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig
from torch import nn

from ..adapters import lora as adapters
from ..adapters.adapter_file import AdapterFile
from ..adapters.download import local_folder
from ..adapters.loading import check_fits
from ..adapters.read import read_adapter
from ..adapters.target_modules import input_width
from ..config import NARROW, RATE_TIMES_WIDTH, TrainConfig
from ..divergences.conjugates import CONJUGATES, Conjugate, conjugate
from ..divergences.loss import DivergenceLoss
from ..divergences.profiles import Divergence, Generator


def divergence_of(
    f: str | Divergence | Generator | Conjugate, config: TrainConfig
) -> tuple[DivergenceLoss, Conjugate | None]:
    """The loss that f gives, and what a critic of the variational estimator needs.

    Raises:
        TypeError: if f is of a kind that the estimator cannot take.
        ValueError: for an unknown name.
    """
    if config.critic is None:
        if isinstance(f, Conjugate):
            raise TypeError("a Conjugate needs estimator='variational'")
        return DivergenceLoss(f, config.sigma), None
    if isinstance(f, Conjugate):
        return DivergenceLoss("kl", config.sigma), f  # sigma and the scale of s: those of kl
    if isinstance(f, str):
        return DivergenceLoss(f, config.sigma), conjugate(f)
    raise TypeError(
        "the variational estimator needs the name of a divergence or a Conjugate, "
        f"got {type(f).__name__}"
    )


def f_name(loss: DivergenceLoss, critic: Conjugate | None) -> str:
    """As the recipe has it: a conjugate of the user's own is in no file."""
    if critic is None:
        return loss.divergence.name
    return critic.name if CONJUGATES.get(critic.name) is critic else f"conjugate:{critic.name}"


def origin_of(
    model: nn.Module, config: TrainConfig, start: str | Path | None
) -> tuple[AdapterFile | None, LoraConfig]:
    """The adapter to go on from, and PEFT's configuration of the one to train.

    Args:
        model: the denoiser.
        config: of the training; rank, alpha and layers are those of the start, if there is one.
        start: its folder or Hub name; None: begin anew.

    Raises:
        ValueError: if it is not to be trusted or does not fit, and see `adapters.lora_config`.
    """
    if start is None:
        return None, adapters.lora_config(model, config.rank, config.alpha, config.target_modules)
    origin = read_adapter(local_folder(start))
    check_fits(origin, model)
    return origin, origin.lora_config()


def settled(model: nn.Module, config: TrainConfig, lora: LoraConfig) -> TrainConfig:
    """The config with a value for every field that leaves one to the denoiser but the rate."""
    modules = sorted(lora.target_modules or ())
    return replace(config, rank=lora.r, alpha=lora.lora_alpha, target_modules=modules)


def learning_rate(model: nn.Module, config: TrainConfig, is_plain: bool) -> float:
    """The config's, or the one for the width of the adapted layers' input.

    Args:
        model: the denoiser.
        config: of the training.
        is_plain: the adapter starts without effect.
    """
    if config.learning_rate != "auto":
        return config.learning_rate
    width = input_width(model, config.target_modules or ())
    return RATE_TIMES_WIDTH / (math.sqrt(NARROW * width) if is_plain else width)
