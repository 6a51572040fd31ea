"""95 % confidence intervals: of means over seeds, of shares, and of figures of many pictures.

The bootstrap (Efron, "Bootstrap Methods", 1979) draws pictures again with replacement and makes
the figure anew of each draw; the interval lies between the 2.5 and the 97.5 percentile. Pictures
count as independent, though those of one prompt are less so: intervals over few prompts are too
narrow.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
Statistic = Callable[..., np.ndarray]
"""Maps one array (resamples, N) for each group to the figure of each resample, (resamples,)."""

# 0.975 quantiles of Student's t distribution by degrees of freedom.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.959964


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % confidence interval, NaN for a single value."""

    mean: float
    margin: float

    def __str__(self) -> str:
        margin = "" if math.isnan(self.margin) else f" ± {self.margin:.3f}"
        return f"{self.mean:.3f}{margin}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % confidence interval of independent values."""
    if not values:
        raise ValueError("no values to average")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, t_quantile(len(values) - 1) * error)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution with so many degrees of freedom.

    Beyond 10 it is the Cornish-Fisher expansion, whose error is below 1e-4 there.
    """
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    z, n = _NORMAL, freedom
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + first + second + third


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of the share of hits among independent trials."""
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"{hits} of {total} is no share")
    share, z2 = hits / total, _NORMAL**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    variance = share * (1 - share) / total + z2 / (4 * total**2)
    margin = _NORMAL * math.sqrt(variance) / (1 + z2 / total)
    # At either end the bound is the end itself, but for rounding.
    low = 0.0 if hits == 0 else middle - margin
    high = 1.0 if hits == total else middle + margin
    return low, high


def means(values: np.ndarray) -> np.ndarray:
    """Mean of each row, (R, N) -> (R,)."""
    return values.mean(1)


def bootstrap(
    values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of independent values.

    A share of 0 or 1 has no spread to draw from, and would seem certain: its interval is Wilson's.
    """
    if set(values) in ({0.0}, {1.0}):
        return wilson(sum(map(int, values)), len(values))
    return bootstrap_of(means, [values], resamples, seed)


def bootstrap_of(
    statistic: Statistic,
    groups: Sequence[Sequence[float]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a figure of several groups of independent values, each drawn by itself."""
    if not groups or not all(len(group) for group in groups):
        raise ValueError("no values to draw from")
    rng = np.random.default_rng(seed)
    drawn = []
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        drawn.append(values[rng.integers(len(values), size=(resamples, len(values)))])
    low, high = np.percentile(statistic(*drawn), PERCENTILES)
    return float(low), float(high)
