"""Concept unlearning for diffusers pipelines under any f-divergence, as a standard LoRA."""

from .adapters.download import pull
from .adapters.export.export import export
from .adapters.fuse import fuse
from .adapters.info import describe
from .adapters.loading import load_unlearned
from .adapters.merging.conflicts import Conflicts, conflicts
from .adapters.merging.merge import merge
from .adapters.merging.merged import Merged
from .adapters.stacking import stack, strengths, unstack
from .config import DataConfig, Performance, Robust, TrainConfig, Variational
from .data.concepts import Concept, NegativeGuidance
from .divergences.conjugates import CONJUGATES, Conjugate
from .divergences.loss import DivergenceLoss
from .divergences.profiles import DIVERGENCES, Divergence, divergence
from .evaluation.compare import compare
from .evaluation.comparison import Comparison, load_comparison
from .evaluation.evaluate import evaluate
from .evaluation.watch import Watch
from .hub.card import render_card
from .hub.push import push
from .hub.search import FoundAdapter, find_adapters
from .retrain import retrain
from .training.callbacks import StepRecord
from .unlearner import FDUnlearner
from .utils.hub_errors import HubError
from .utils.version import VERSION

__version__ = VERSION

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
