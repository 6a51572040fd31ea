"""Concept unlearning for diffusers pipelines under any f-divergence, as a standard LoRA."""

from .concepts import Concept
from .config import TrainConfig
from .divergences import DIVERGENCES, Divergence, divergence
from .loss import DivergenceLoss
from .performance import Performance
from .train import StepRecord
from .unlearner import FDUnlearner

__version__ = "0.1.0.dev0"

__all__ = [
    "DIVERGENCES",
    "Concept",
    "Divergence",
    "DivergenceLoss",
    "FDUnlearner",
    "Performance",
    "StepRecord",
    "TrainConfig",
    "divergence",
]
