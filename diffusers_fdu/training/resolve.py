"""Resolve what a training is told before it begins: its loss, its start, its open options."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn

from ..adapters import lora as adapters
from ..adapters.adapter_file import AdapterFile
from ..adapters.download import local_folder
from ..adapters.loading import check_fits
from ..adapters.read import read_adapter
from ..adapters.target_modules import input_width
from ..config import TrainConfig
from ..data.concepts import Concept
from ..data.plan import RunContext
from ..divergences.choice import AutoDivergence
from ..divergences.conjugates import CONJUGATES, Conjugate, conjugate
from ..divergences.divergence import Divergence
from ..divergences.loss import DivergenceLoss
from ..divergences.profiles import Generator
from .acceleration import check_supported

RATE_TIMES_WIDTH, NARROW = 0.64, 128
"""Learning rate times the width of the adapted layers' input, from the closed-form start.

A step of Adam moves A c by the rate times the width, and B (A c) by the rate times the rank. From
the closed form, where both are far from 0, 0.64 / width is as good at 768 and 2048 as at 128,
where it was chosen. A plain start has B = 0, which at that rate grows too slowly on a wide model:
there it falls with the root of the width alone (`examples/studies/width.py` measures both).
"""

F = str | Divergence | Generator | Conjugate | AutoDivergence


@dataclass(frozen=True)
class TrainingPlan:
    """One adapter that is to be trained; the config's rank, alpha and layers are those of `lora`.

    The variational estimator has a conjugate, and a training that goes on `init_adapter`.
    """

    concepts: Sequence[Concept]
    adapter_name: str
    config: TrainConfig
    lora: LoraConfig
    loss: DivergenceLoss
    conjugate: Conjugate | None = None
    init_adapter: AdapterFile | None = None

    @property
    def f(self) -> str:
        """The divergence's name, as the recipe has it; a user's own conjugate is in no file."""
        if self.conjugate is None:
            return self.loss.divergence.name
        is_known = CONJUGATES.get(self.conjugate.name) is self.conjugate
        return self.conjugate.name if is_known else f"conjugate:{self.conjugate.name}"

    def facts(self) -> dict[str, Any]:
        """What the recipe says of it besides the options."""
        origin = self.init_adapter
        return {
            "concepts": [vars(concept) for concept in self.concepts],
            "f": self.f,
            "adapter_name": self.adapter_name,
            "start": None if origin is None else origin.recipe or origin.digest,
        }


def resolve_plan(
    context: RunContext,
    concepts: Sequence[Concept],
    f: F,
    adapter_name: str | None = None,
    init_adapter: str | Path | None = None,
) -> TrainingPlan:
    """Check everything about a training that can be checked before it begins.

    Raises:
        TypeError, ValueError: for a bad f or name, if the adapter to go on from is not to be
            trusted or does not fit, or if the denoiser cannot be trained with these options.
    """
    model, config = context.model, context.settings.train
    origin = None
    if init_adapter is None:
        lora = adapters.lora_config(model, config.rank, config.alpha, config.target_modules)
    else:
        origin = read_adapter(local_folder(init_adapter))
        check_fits(origin, model)
        lora = origin.lora_config()
    modules = sorted(lora.target_modules or ())
    config = replace(config, rank=lora.r, alpha=lora.lora_alpha, target_modules=modules)
    loss, critic_conjugate = build_loss(f, config)
    default_name = adapters.name_for([concept.target for concept in concepts])
    name = adapter_name or adapters.free_name(default_name, model)
    adapters.check_adapter_name(name, model)
    adapters.check_denoiser(model)
    check_supported(context.settings.performance, model)
    return TrainingPlan(concepts, name, config, lora, loss, critic_conjugate, origin)


def build_loss(f: F, config: TrainConfig) -> tuple[DivergenceLoss, Conjugate | None]:
    """The loss that f gives, and what a critic of the variational estimator needs.

    Raises:
        TypeError, ValueError: if f is of a kind that the estimator cannot take, or unknown.
    """
    if f == "auto":
        f = AutoDivergence()
    if isinstance(f, AutoDivergence):
        f = f.f
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


def learning_rate(model: nn.Module, config: TrainConfig, is_plain: bool) -> float:
    """The config's rate, or that for the width; `is_plain` says that it starts without effect."""
    if config.learning_rate != "auto":
        return config.learning_rate
    width = input_width(model, config.target_modules or ())
    return RATE_TIMES_WIDTH / (math.sqrt(NARROW * width) if is_plain else width)
