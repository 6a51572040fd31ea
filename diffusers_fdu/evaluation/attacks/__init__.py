"""Attacks: is the concept gone, or only hidden?"""

from .probing import Completion, NoiseProbing
from .relearning import Relearning, Removal
from .run import ATTACKS, attack, check_names
from .scene import Attack, AttackOutcome, AttackTarget
from .search import ConceptInversion, GreedySearch, PromptSearch

__all__ = [
    "ATTACKS",
    "Attack",
    "Completion",
    "ConceptInversion",
    "GreedySearch",
    "NoiseProbing",
    "Outcome",
    "PromptSearch",
    "Relearning",
    "Removal",
    "Scene",
    "attack",
    "check_names",
]
