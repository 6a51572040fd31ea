"""Did it forget, and what else: pictures, metrics, attacks, one report.

`diffusers_fdu.evaluate` puts them together.
"""

from .images import ImageSet, Request, draw, load_image_set
from .judges import ClassifierJudge, ClipJudge, Judge, NamedJudge, NudeNetJudge
from .metrics.clip import ClipScorer
from .prompt_grid import CIFAR10, UNLEARNCANVAS, PromptGrid
from .protocols import PROTOCOLS, Protocol, resolve_protocol
from .report.pages import write_report
from .result import AttackResult, Evaluation, Metric, from_json, to_json

__all__ = [
    "CIFAR10",
    "PROTOCOLS",
    "UNLEARNCANVAS",
    "AttackResult",
    "ClassifierJudge",
    "ClipJudge",
    "ClipScorer",
    "Evaluation",
    "ImageSet",
    "Judge",
    "Metric",
    "NamedJudge",
    "NudeNetJudge",
    "PromptGrid",
    "Protocol",
    "Request",
    "draw",
    "from_json",
    "load_image_set",
    "resolve_protocol",
    "to_json",
    "write_report",
]
