"""Concept unlearning for diffusers pipelines under any f-divergence, as a standard LoRA."""

from .adversary import Robust
from .compare import compare
from .comparison import Comparison, load_comparison
from .concepts import Concept, NegativeGuidance
from .config import DataConfig, TrainConfig
from .conjugates import CONJUGATES, Conjugate
from .divergences import DIVERGENCES, Divergence, divergence
from .evaluate import evaluate
from .export import export
from .fuse import fuse
from .hub import FoundAdapter, HubError, find_adapters, pull, push, render_card
from .info import describe
from .loss import DivergenceLoss
from .merging import Conflicts, Merged, conflicts, merge
from .performance import Performance
from .retrain import retrain
from .stacking import stack, strengths, unstack
from .steps import StepRecord
from .unlearner import FDUnlearner
from .variational import Variational
from .watching import Watch
from .weights import load_unlearned

__version__ = "0.1.0.dev0"

__all__ = [
    "CONJUGATES",
    "DIVERGENCES",
    "Comparison",
    "Concept",
    "Conflicts",
    "Conjugate",
    "DataConfig",
    "Divergence",
    "DivergenceLoss",
    "FDUnlearner",
    "FoundAdapter",
    "HubError",
    "Merged",
    "NegativeGuidance",
    "Performance",
    "Robust",
    "StepRecord",
    "TrainConfig",
    "Variational",
    "Watch",
    "compare",
    "conflicts",
    "describe",
    "divergence",
    "find_adapters",
    "evaluate",
    "export",
    "fuse",
    "load_comparison",
    "load_unlearned",
    "merge",
    "pull",
    "push",
    "render_card",
    "retrain",
    "stack",
    "strengths",
    "unstack",
]
