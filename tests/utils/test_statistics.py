from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from diffusers_fdu.utils.statistics import (
    bootstrap,
    bootstrap_of,
    estimate,
    means,
    t_quantile,
    wilson,
)


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


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(300):
        low, high = bootstrap(rng.exponential(2.0, 60).tolist(), resamples=400, seed=trial)
        held += low <= 2.0 <= high
    assert 0.88 <= held / 300 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=40).tolist()
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap(values.tolist(), resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_all_is_not_certain(share: float) -> None:
    assert bootstrap([share] * 32) == wilson(int(32 * share), 32)


def test_equal_values_that_are_no_share_have_no_width() -> None:
    assert bootstrap([0.5] * 9) == (0.5, 0.5)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_groups_are_drawn_independently() -> None:
    a = np.random.default_rng(0).normal(size=200).tolist()
    # The same draws of both would cancel.
    low, high = bootstrap_of(lambda x, y: means(x) - means(y), [a, a])
    assert high - low == pytest.approx(
        2 * 1.96 * math.sqrt(2) * np.std(a) / math.sqrt(200), rel=0.2
    )


def test_wilson_against_known_intervals() -> None:
    # R: prop.test(hits, total, correct = FALSE)
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-6)
    assert wilson(40, 40) == pytest.approx((0.9123785, 1.0), abs=1e-6)
    for bad in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="no share"):
            wilson(*bad)
