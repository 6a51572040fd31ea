"""The options of a training, and which of them are about the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from .performance import Performance

INITS = ("auto", "lora", "closed_form")
RATE_TIMES_WIDTH = 0.64
"""Learning rate times the width of the adapted layers' input.

A step of Adam moves every weight by the learning rate, so it moves an answer by that times the
number of inputs. 0.64 is what the embedded model is measured with (5e-3 at width 128) and gives
8e-4 at width 768, Stable Diffusion 1, where it is not measured.
"""


@dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained.

    Args:
        rank: rank of the LoRA update.
        alpha: the update is scaled by alpha / rank; None: alpha = rank.
        target_modules: suffixes of the adapted layers; None: keys and values of cross-attention.
        init: how the adapter starts: "lora" without effect; "closed_form" with the linear map of
            the text that comes nearest (`closed_form`); "auto": "closed_form" where the adapted
            layers read nothing but the text.
        steps: most optimizer steps.
        batch_size: rows of each role (unlearn, retain) in one micro-batch.
        gradient_accumulation_steps: micro-batches in one step.
        learning_rate: peak of AdamW's; linear warm-up, then cosine. "auto": `RATE_TIMES_WIDTH`
            divided by the width of the adapted layers' input.
        max_grad_norm: gradients are clipped to this norm.
        sigma: scale of the divergence; "auto" puts the median initial s at `loss.MEDIAN_S`.
        retain: prompts whose pictures must stay; None: words of the vocabulary.
        retain_weight: weight of the retain loss against the unlearning one, which is scaled so
            that every divergence pulls equally at half the median initial difference; 0: nothing
            is recorded and computed to retain.
        trajectories: anchor images recorded; three times as many are recorded to retain.
        early_stop: stop once the mean squared difference from the anchor (the same scale for
            every f) is below this fraction of its start; 0: never.
        seed: of prompts, noise, initial weights and batches.
    """

    rank: int = 8
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    init: Literal["auto", "lora", "closed_form"] = "auto"
    steps: int = 100
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float | Literal["auto"] = "auto"
    max_grad_norm: float = 1.0
    sigma: float | Literal["auto"] = "auto"
    retain: Sequence[str] | None = None
    retain_weight: float = 2.0
    trajectories: int = 96
    early_stop: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("rank", "steps", "batch_size", "gradient_accumulation_steps", "trajectories")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        free = {"learning_rate": "auto", "alpha": None, "max_grad_norm": 1.0}
        for name, default in free.items():
            value = getattr(self, name)
            if value != default and not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} must be positive, got {value!r}")
        if not _is_number(self.retain_weight) or not 0 <= self.retain_weight < math.inf:
            raise ValueError(f"retain_weight must not be negative, got {self.retain_weight!r}")
        if not _is_number(self.early_stop) or not 0 <= self.early_stop < 1:
            raise ValueError(f"early_stop must lie in [0, 1), got {self.early_stop!r}")
        if self.init not in INITS:
            raise ValueError(f"unknown init {self.init!r}: choose {', '.join(INITS)}")


def settings(options: dict[str, Any]) -> tuple[TrainConfig, Performance]:
    """What keyword arguments say of the training and of the machine.

    Raises:
        TypeError: for a name that is a field of neither, with the fields.
    """
    own, machine = ([f.name for f in fields(kind)] for kind in (TrainConfig, Performance))
    for name in options:
        if name not in (*own, *machine):
            known = ", ".join((*own, *machine))
            raise TypeError(f"unknown option {name!r}: choose from {known}")
    config = TrainConfig(**{k: v for k, v in options.items() if k in own})
    return config, Performance(**{k: v for k, v in options.items() if k in machine})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
