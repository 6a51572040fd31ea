"""What an attack is, and what one run of it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .scene import Scene


@dataclass(frozen=True)
class Outcome:
    """One run of an attack, with one seed.

    Args:
        hits: whether each picture shows the target again.
        curve: (what was spent, share of hits) along the way.
        found: what was found, such as an adversarial prompt; "": nothing that could be said.
    """

    hits: list[bool]
    curve: tuple[tuple[float, float], ...] = ()
    found: str = ""


class Attack(Protocol):
    """Tries to bring a concept back; leaves the scene's pipe as it was."""

    @property
    def name(self) -> str:
        """In words."""
        ...

    @property
    def budget(self) -> Mapping[str, float]:
        """What one run may spend."""
        ...

    def __call__(self, scene: Scene, seed: int) -> Outcome:
        """One run.

        Args:
            scene: what to attack.
            seed: of everything random in it.
        """
        ...
