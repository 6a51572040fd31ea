"""Which divergence, if the user names a preference and not an f."""

from __future__ import annotations

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


def choose(prefer: Preference = "balance", comparison: Compared | None = None) -> str:
    """The divergence for a preference.

    Args:
        prefer: "erase": as thoroughly as possible; "preserve": as gently as possible;
            "balance": neither.
        comparison: what `compare` measured; None: `RULES`.

    Raises:
        ValueError: for an unknown preference.
    """
    if prefer not in RULES:
        raise ValueError(f"unknown preference {prefer!r}: choose {', '.join(RULES)}")
    return RULES[prefer] if comparison is None else comparison.best(prefer).f
