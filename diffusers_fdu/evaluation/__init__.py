"""Did it forget, and what else: pictures, metrics, attacks, one report.

`diffusers_fdu.evaluate` puts them together.
"""

from .canvas import CIFAR10, UNLEARNCANVAS, Canvas
from .clip import ClipScorer
from .gallery import Gallery, draw, load_gallery
from .judges import ClassifierJudge, ClipJudge, NamedJudge, NudeNetJudge
from .protocols import PROTOCOLS, Protocol, protocol
from .report import from_json, to_json, write_report
from .request import Judge, Request
from .result import AttackResult, Evaluation, Metric

__all__ = [
    "CIFAR10",
    "PROTOCOLS",
    "UNLEARNCANVAS",
    "AttackResult",
    "Canvas",
    "ClassifierJudge",
    "ClipJudge",
    "ClipScorer",
    "Evaluation",
    "Gallery",
    "Judge",
    "Metric",
    "NamedJudge",
    "NudeNetJudge",
    "Protocol",
    "Request",
    "draw",
    "from_json",
    "load_gallery",
    "protocol",
    "to_json",
    "write_report",
]
