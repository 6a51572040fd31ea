"""Attacks: is the concept gone, or only hidden?"""

from .attack import Attack, AttackOutcome, AttackTarget
from .probing import Completion, NoiseProbing
from .relearning import Relearning, Removal
from .run import ATTACKS, attack, check_names
from .search import ConceptInversion, GreedySearch, PromptSearch

__all__ = [
    "ATTACKS",
    "Attack",
    "Completion",
    "ConceptInversion",
    "GreedySearch",
    "NoiseProbing",
    "AttackOutcome",
    "PromptSearch",
    "Relearning",
    "Removal",
    "AttackTarget",
    "attack",
    "check_names",
]
