"""Which divergence, if the user names a preference and not an f."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Preference = Literal["erase", "balance", "preserve"]

RULES: dict[str, str] = {"erase": "chi2", "balance": "hellinger", "preserve": "le_cam"}
"""f by preference, where nothing was compared.

chi2 pulls the samples that are farthest from the anchor hardest and lets go of none; hellinger and
le_cam are bounded and let go of far samples, le_cam sooner. On the embedded model chi2 keeps less
than the others and hellinger a little more than kl (docs/benchmarks.md); that chi2 erases more is
within the interval, and le_cam was not in that comparison. `compare` measures what they do where
it matters.
"""


class Compared(Protocol):
    """What `compare` returns, as far as it matters here."""

    def best(self, prefer: Preference = "balance") -> Any:
        """The point that a preference picks, with its `f`."""


@dataclass(frozen=True)
class AutoDivergence:
    """The divergence that a preference picks.

        unlearner.unlearn("Snoopy", "dog", f=AutoDivergence("preserve", comparison))

    Args:
        prefer: "erase": as thoroughly as possible; "preserve": as gently as possible;
            "balance": neither.
        comparison: what `compare` measured; None: `RULES`.

    Raises:
        ValueError: for an unknown preference.
    """

    prefer: Preference = "balance"
    comparison: Compared | None = None

    def __post_init__(self) -> None:
        if self.prefer not in RULES:
            raise ValueError(f"unknown preference {self.prefer!r}: choose {', '.join(RULES)}")

    @property
    def f(self) -> str:
        """The name of the divergence."""
        compared = self.comparison
        return RULES[self.prefer] if compared is None else compared.best(self.prefer).f
