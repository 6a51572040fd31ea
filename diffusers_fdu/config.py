"""The options of a training: how it goes, what it sees, and which machine it runs on."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

RETAIN_PER_TRAJECTORY = 3
STAGES = (16, 32, 64, 96)

Auto = Literal["auto"]


@dataclass(frozen=True)
class Variational:
    """The variational estimator and its critic's training.

    The release of f-DMU takes 500 steps with a rate of 1e-4 and no penalty, which in the default
    100 steps teaches a critic too little (docs/benchmarks.md).

    Args:
        learning_rate: learning rate of the critic's AdamW.
        warmup_steps: steps of the critic alone before the student's first.
        critic_steps: steps of the critic for one of the student.
        gradient_penalty: weight of E |grad v|^2 / 2 on the teacher's predictions (R1, Mescheder
            et al., arXiv 1801.04406), v the critic's output before its activation; 0 for none.
        width: channels of the critic.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> TrainConfig(estimator=Variational(width=32)).critic.width
        32
    """

    learning_rate: float = 3e-3
    warmup_steps: int = 30
    critic_steps: int = 8
    gradient_penalty: float = 10.0
    width: int = 64

    def __post_init__(self) -> None:
        _check(self, COUNT, "critic_steps", "width")
        _check(self, "at least 0", "warmup_steps", "gradient_penalty")
        _check(self, POSITIVE, "learning_rate")


@dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained.

    Args:
        rank: rank of the LoRA update.
        alpha: the update is scaled by alpha / rank; None for alpha = rank.
        target_modules: suffixes of the adapted layers; by default cross-attention's keys, values.
        init: "lora" starts without effect, "closed_form" with the linear map of the text that
            comes nearest, "auto" with that where the adapted layers read nothing but the text.
        steps: most optimizer steps.
        batch_size: rows of each role (unlearn, retain) in a step.
        learning_rate: peak rate of AdamW, between a linear warm-up and a cosine. "auto" takes it
            from the width of the adapted layers' input and the start (`training.resolve`).
        max_grad_norm: norm that gradients are clipped to.
        sigma: scale of the divergence; "auto" puts the median initial s at `loss.MEDIAN_S`.
        retain_weight: weight of the retain loss against the unlearning one, which is scaled so
            that every divergence pulls equally at half the median initial difference. With 0
            nothing is recorded and computed to retain.
        surgery: whether the unlearning gradient loses what works against the retain gradient.
        estimator: "exact" for the divergence's profile, "variational" for the bound that a
            critic finds, or a `Variational` that sets how the critic is trained.
        early_stop: share of its start below which the mean squared difference from the anchor
            (the same scale for every f) ends the training; 0 for never.
        seed: seed of prompts, noise, initial weights and batches.

    Raises:
        ValueError: for a bad value.

    Example:
        >>> TrainConfig(rank=4, learning_rate="fast")
        Traceback (most recent call last):
        ValueError: learning_rate must be positive or 'auto', got 'fast'
    """

    rank: int = 8
    alpha: float | None = None
    target_modules: Sequence[str] | None = None
    init: Literal["auto", "lora", "closed_form"] = "auto"
    steps: int = 100
    batch_size: int = 16
    learning_rate: float | Literal["auto"] = "auto"
    max_grad_norm: float = 1.0
    sigma: float | Literal["auto"] = "auto"
    retain_weight: float = 2.0
    surgery: bool = False
    estimator: Literal["exact", "variational"] | Variational = "exact"
    early_stop: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, COUNT, "rank", "steps", "batch_size")
        _check(self, POSITIVE, "learning_rate", special=("auto",))
        _check(self, POSITIVE, "alpha", special=(None,))
        _check(self, POSITIVE, "max_grad_norm")
        _check(self, "at least 0", "retain_weight")
        _check(self, "at least 0 and below 1", "early_stop")
        _check(self, BOOL, "surgery")
        _check(self, "an integer", "seed")
        _check(self, "a list", "target_modules", special=(None,))
        _check_choices(self, init=("auto", "lora", "closed_form"))
        if self.estimator not in ("exact", "variational") and self.critic is None:
            raise ValueError(
                f"unknown estimator {self.estimator!r}: choose exact, variational, or pass a "
                "Variational"
            )

    @property
    def critic(self) -> Variational | None:
        """How a critic is trained; None without one."""
        if isinstance(self.estimator, Variational):
            return self.estimator
        return Variational() if self.estimator == "variational" else None


@dataclass(frozen=True)
class Robust:
    """How a training defends what it unlearns against concept inversion.

    Args:
        every: steps between two searches for an embedding that brings the concept back.
        steps: gradient steps of a search.
        batch: rows in one of them.
        tokens: length of the embeddings searched for.
        prompts: prompts that they stand in, for each concept.
        pictures: pictures of each concept, drawn by the original model.

    Raises:
        ValueError: for numbers below 1.

    Example:
        >>> unlearner = FDUnlearner(pipe, robust=Robust(every=10, pictures=16))
    """

    every: int = 5
    steps: int = 20
    batch: int = 16
    tokens: int = 1
    prompts: int = 8
    pictures: int = 32

    def __post_init__(self) -> None:
        _check(self, COUNT, *vars(self))


@dataclass(frozen=True)
class DataConfig:
    """What a training sees.

    Args:
        trajectories: pictures of the anchor recorded for each concept; three times as many are
            recorded to retain, for any number of concepts. "auto" records 16, 32, 64 or 96, until
            more do not change the gradient, and 96 without a closed-form start (`agreement`).
        retain: prompts whose pictures must stay; None for words of the vocabulary.
        robust: whether to look for token embeddings that still bring a concept back, and unlearn
            them, too, which keeps the text encoders beside the denoiser; a `Robust` says how.

    Raises:
        ValueError: for a bad value.

    Example:
        >>> unlearner = FDUnlearner(pipe, trajectories=24, retain=["a cat", "a pizza"])
        >>> unlearner.data.stages
        (24,)
    """

    trajectories: int | Auto = "auto"
    retain: Sequence[str] | None = None
    robust: bool | Robust = False

    def __post_init__(self) -> None:
        _check(self, COUNT, "trajectories", special=("auto",))
        _check(self, "a list", "retain", special=(None,))
        if not isinstance(self.robust, bool | Robust):
            raise ValueError(f"robust must be True, False or a Robust, got {self.robust!r}")

    @property
    def stages(self) -> tuple[int, ...]:
        """Numbers of trajectories at which recording may stop."""
        return STAGES if self.trajectories == "auto" else (self.trajectories,)

    @property
    def defence(self) -> Robust | None:
        """How a training is made robust; None if it is not."""
        if isinstance(self.robust, Robust):
            return self.robust
        return Robust() if self.robust else None


@dataclass(frozen=True)
class PerformanceConfig:
    """What trades time and memory. "auto" leaves a choice to `auto_fit`.

    Args:
        mixed_precision: autocast of the denoiser, "no", "fp16" or "bf16".
        compile: whether the denoiser's repeated blocks are compiled with `torch.compile`, which
            is worth it where training takes minutes, see docs/benchmarks.md.
        micro_batch_size: rows of each role (unlearn, retain) in one pass of the denoiser; a step
            of `batch_size` rows takes as many passes as it needs. "auto" takes as many as fit.
        record_batch: pictures recorded at once. "auto" takes as many as fit, at most 8.
        gradient_checkpointing: whether activations are computed again to save memory. "auto" does
            so where a micro-batch of one row does not fit without.
        optimizer: "adamw", or "adamw_8bit" of bitsandbytes.
        offload: whether text encoders and autoencoder are off the accelerator while it trains.
            "auto" does so where the memory that they take is needed.
        data_parallel: whether the processes that `accelerate launch` started train one adapter
            together, each with `batch_size` rows; otherwise every process trains its own.
        shard: whether the processes share out the denoiser's frozen weights (FSDP); needs
            `data_parallel`.

    Raises:
        ValueError: for a bad value, or options that do not go together.
        ImportError: for "adamw_8bit" without bitsandbytes.

    Example:
        >>> PerformanceConfig(micro_batch_size=4).micro_batch(batch_size=16)
        4
    """

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    micro_batch_size: int | Auto = "auto"
    record_batch: int | Auto = "auto"
    gradient_checkpointing: bool | Auto = "auto"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    offload: bool | Auto = "auto"
    data_parallel: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        _check(self, BOOL, "compile", "data_parallel", "shard")
        _check(self, BOOL, "gradient_checkpointing", "offload", special=("auto",))
        _check(self, COUNT, "micro_batch_size", "record_batch", special=("auto",))
        _check_choices(
            self, mixed_precision=("no", "fp16", "bf16"), optimizer=("adamw", "adamw_8bit")
        )
        if self.shard and not self.data_parallel:
            raise ValueError("shard=True needs data_parallel=True, and several processes")
        if self.shard and self.compile:
            raise ValueError("shard=True and compile=True do not go together: choose one")
        if self.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError(
                'optimizer="adamw_8bit" needs bitsandbytes: pip install "diffusers-fdu[8bit]"'
            )

    def micro_batch(self, batch_size: int) -> int:
        """Rows of each role in one pass of the denoiser; all of a step's if nothing was chosen."""
        size = self.micro_batch_size
        return batch_size if size == "auto" else min(size, batch_size)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value < math.inf


COUNT, BOOL, POSITIVE = "an integer of at least 1", "True or False", "positive"
KINDS: dict[str, Callable[[Any], bool]] = {
    COUNT: lambda value: type(value) is int and value >= 1,  # True is an int, too
    BOOL: lambda value: isinstance(value, bool),
    POSITIVE: lambda value: _is_number(value) and value > 0,
    "at least 0": lambda value: _is_number(value) and value >= 0,
    "an integer": lambda value: isinstance(value, int),
    "a list": lambda value: isinstance(value, Sequence) and not isinstance(value, str),
    "at least 0 and below 1": lambda value: _is_number(value) and 0 <= value < 1,
}


def _check(config: Any, kind: str, *names: str, special: tuple[Any, ...] = ()) -> None:
    """Raise a ValueError unless these fields are of a kind, or have a special value."""
    for name in names:
        value = getattr(config, name)
        if value not in special and not KINDS[kind](value):
            others = "".join(f" or {other!r}" for other in special)
            raise ValueError(f"{name} must be {kind}{others}, got {value!r}")


def _check_choices(config: Any, **choices: Sequence[str]) -> None:
    for name, values in choices.items():
        if (value := getattr(config, name)) not in values:
            raise ValueError(f"unknown {name} {value!r}: choose {', '.join(values)}")
