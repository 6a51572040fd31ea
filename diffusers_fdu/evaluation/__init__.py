"""Did it forget, and what else: pictures, metrics, attacks, one report.

`diffusers_fdu.evaluate` puts them together.
"""

from .images import ImageSet as ImageSet
from .images import Request as Request
from .images import draw as draw
from .images import load_image_set as load_image_set
from .judges import ClassifierJudge as ClassifierJudge
from .judges import ClipJudge as ClipJudge
from .judges import Judge as Judge
from .judges import NamedJudge as NamedJudge
from .judges import NudeNetJudge as NudeNetJudge
from .metrics.clip import ClipScorer as ClipScorer
from .prompt_grid import CIFAR10 as CIFAR10
from .prompt_grid import UNLEARNCANVAS as UNLEARNCANVAS
from .prompt_grid import PromptGrid as PromptGrid
from .protocols import PROTOCOLS as PROTOCOLS
from .protocols import Protocol as Protocol
from .protocols import resolve_protocol as resolve_protocol
from .report.pages import write_report as write_report
from .result import AttackResult as AttackResult
from .result import Evaluation as Evaluation
from .result import Metric as Metric
from .result import from_json as from_json
from .result import to_json as to_json
