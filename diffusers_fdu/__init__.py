"""Concept unlearning for diffusers pipelines under any f-divergence, as a standard LoRA.

A public name is imported when it is first used, so that `import diffusers_fdu` and the command
line's help load neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .utils.version import VERSION

if TYPE_CHECKING:
    from .adapters.download import pull as pull
    from .adapters.export.export import export as export
    from .adapters.fuse import fuse as fuse
    from .adapters.info import describe as describe
    from .adapters.loading import load_unlearned as load_unlearned
    from .adapters.merging.conflicts import Conflicts as Conflicts
    from .adapters.merging.conflicts import conflicts as conflicts
    from .adapters.merging.merge import Merged as Merged
    from .adapters.merging.merge import merge as merge
    from .adapters.stacking import stack as stack
    from .adapters.stacking import strengths as strengths
    from .adapters.stacking import unstack as unstack
    from .config import DataConfig as DataConfig
    from .config import PerformanceConfig as PerformanceConfig
    from .config import Robust as Robust
    from .config import TrainConfig as TrainConfig
    from .config import Variational as Variational
    from .data.concepts import Concept as Concept
    from .data.concepts import NegativeGuidance as NegativeGuidance
    from .divergences.choice import AutoDivergence as AutoDivergence
    from .divergences.conjugates import CONJUGATES as CONJUGATES
    from .divergences.conjugates import Conjugate as Conjugate
    from .divergences.divergence import Divergence as Divergence
    from .divergences.loss import DivergenceLoss as DivergenceLoss
    from .divergences.profiles import DIVERGENCES as DIVERGENCES
    from .divergences.profiles import divergence as divergence
    from .evaluation.callback import EvaluationCallback as EvaluationCallback
    from .evaluation.compare import compare as compare
    from .evaluation.comparison import Comparison as Comparison
    from .evaluation.comparison import load_comparison as load_comparison
    from .evaluation.evaluate import EvaluationConfig as EvaluationConfig
    from .evaluation.evaluate import evaluate as evaluate
    from .hub.card import render_card as render_card
    from .hub.push import push as push
    from .hub.search import FoundAdapter as FoundAdapter
    from .hub.search import find_adapters as find_adapters
    from .retraining import retrain as retrain
    from .training.callbacks import StepRecord as StepRecord
    from .training.checkpoint import CheckpointConfig as CheckpointConfig
    from .unlearner import FDUnlearner as FDUnlearner
    from .utils.hub_errors import HubError as HubError

__version__ = VERSION

_NAMES = {
    "adapters.download": "pull",
    "adapters.export.export": "export",
    "adapters.fuse": "fuse",
    "adapters.info": "describe",
    "adapters.loading": "load_unlearned",
    "adapters.merging.conflicts": "Conflicts conflicts",
    "adapters.merging.merge": "Merged merge",
    "adapters.stacking": "stack strengths unstack",
    "config": "DataConfig PerformanceConfig Robust TrainConfig Variational",
    "data.concepts": "Concept NegativeGuidance",
    "divergences.choice": "AutoDivergence",
    "divergences.conjugates": "CONJUGATES Conjugate",
    "divergences.divergence": "Divergence",
    "divergences.loss": "DivergenceLoss",
    "divergences.profiles": "DIVERGENCES divergence",
    "evaluation.callback": "EvaluationCallback",
    "evaluation.compare": "compare",
    "evaluation.comparison": "Comparison load_comparison",
    "evaluation.evaluate": "EvaluationConfig evaluate",
    "hub.card": "render_card",
    "hub.push": "push",
    "hub.search": "FoundAdapter find_adapters",
    "retraining": "retrain",
    "training.callbacks": "StepRecord",
    "training.checkpoint": "CheckpointConfig",
    "unlearner": "FDUnlearner",
    "utils.hub_errors": "HubError",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
