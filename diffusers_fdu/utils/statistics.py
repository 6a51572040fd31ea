"""Confidence intervals: of means over seeds, and of shares."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# 0.975 quantiles of Student's t distribution by degrees of freedom.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.959964


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % confidence interval; NaN of a single value."""

    mean: float
    margin: float

    def __str__(self) -> str:
        if math.isnan(self.margin):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.margin:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % confidence interval of independent values.

    Raises:
        ValueError: if there is none.
    """
    if not values:
        raise ValueError("no values to average")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, t_quantile(len(values) - 1) * error)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution.

    Args:
        freedom: degrees of freedom, at least 1; beyond 10 by the Cornish-Fisher expansion, whose
            error is below 1e-4 there.
    """
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z, n = _NORMAL, freedom
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + first + second + third


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share, of independent trials.

    Args:
        hits: trials that count.
        total: all trials.

    Raises:
        ValueError: if there is none, or more hits than trials.
    """
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"{hits} of {total} is no share")
    share, z2 = hits / total, _NORMAL**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total**2)
    margin = _NORMAL * math.sqrt(spread) / (1 + z2 / total)
    # At either end the bound is the end itself, but for rounding.
    low = 0.0 if hits == 0 else middle - margin
    high = 1.0 if hits == total else middle + margin
    return low, high
