"""Bootstrap confidence intervals (Efron, "Bootstrap Methods", 1979).

Pictures are drawn again with replacement, and the figure is made anew of each draw; the interval
lies between the 2.5 and the 97.5 percentile. Pictures count as independent, though those of one
prompt are less so: intervals over few prompts are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..utils.statistics import wilson

RESAMPLES = 2000
SHARE = (2.5, 97.5)

Statistic = Callable[..., np.ndarray]
"""From one array (resamples, N) for each group to the figure of each resample, (resamples,)."""


def means(values: np.ndarray) -> np.ndarray:
    """Mean of each row, (R, N) -> (R,)."""
    return values.mean(1)


def bootstrap(
    values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean.

    A share of 0 or 1 has no spread to draw from, and would seem certain: its interval is Wilson's.

    Args:
        values: of independent pictures.
        resamples: how often they are drawn.
        seed: of the draws.

    Raises:
        ValueError: if there are none.
    """
    first = values[0] if len(values) else None
    if first in (0.0, 1.0) and all(value == first for value in values):
        return wilson(sum(map(int, values)), len(values))
    return bootstrap_of(means, [values], resamples, seed)


def bootstrap_of(
    statistic: Statistic,
    groups: Sequence[Sequence[float]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a figure of several groups, each drawn from by itself.

    Args:
        statistic: see `Statistic`.
        groups: values of independent pictures.
        resamples: how often they are drawn.
        seed: of the draws.

    Raises:
        ValueError: if a group is empty.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("no values to draw from")
    rng = np.random.default_rng(seed)
    drawn = []
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        drawn.append(values[rng.integers(len(values), size=(resamples, len(values)))])
    low, high = np.percentile(statistic(*drawn), SHARE)
    return float(low), float(high)
