from __future__ import annotations

import math
import statistics

import pytest

from diffusers_fdu.utils.statistics import estimate, t_quantile


def density_integral(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t by Simpson's rule."""
    n = 20_000
    c = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    h = t / n
    f = [c * (1 + (i * h) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(n + 1)]
    return 0.5 + h / 3 * (f[0] + f[-1] + 4 * sum(f[1:-1:2]) + 2 * sum(f[2:-1:2]))


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 10, 11, 20, 100])
def test_quantiles(freedom) -> None:
    assert density_integral(t_quantile(freedom), freedom) == pytest.approx(0.975, abs=2e-5)


def test_an_estimate_by_hand() -> None:
    values = [0.5, 0.7, 0.9]
    found = estimate(values)
    assert found.mean == pytest.approx(0.7)
    assert found.margin == pytest.approx(4.303 * statistics.stdev(values) / 3**0.5)
    assert str(found) == "0.700 ± 0.497"


def test_one_value_has_no_interval() -> None:
    assert math.isnan(estimate([0.5]).margin) and str(estimate([0.5])) == "0.500"
    with pytest.raises(ValueError, match="no values"):
        estimate([])
