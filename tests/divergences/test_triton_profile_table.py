"""Tables of profiles, evaluated as the kernel does, against 40-digit values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from diffusers_fdu.divergences.profiles import divergence
from diffusers_fdu.divergences.triton.profile_table import profile_table

PROFILES = json.loads((Path(__file__).parents[1] / "data" / "profiles.json").read_text())


def evaluate(table, s):
    """phi and dphi in float64 from a table's float32 coefficients."""
    rows, knots = table.rows.double(), len(table.rows) - 1
    u = (torch.log(s) - table.first) / table.step
    knot = u.floor().clamp(-1, knots - 1)
    x = u - knot.clamp(min=0)
    powers = torch.stack([x**0, x, x**2, x**3], dim=1)
    row = rows[knot.long() + 1]
    phi = torch.exp((row[:, :4] * powers).sum(1))
    return phi, torch.exp((row[:, 4:] * powers).sum(1) - table.decay * s)


def table_of(f):
    d = divergence(f)
    return profile_table(d.phi, d.dphi, d.last, math.isfinite(d.bound))


def points(name):
    values = [p for p in PROFILES[name]["points"] if p["dphi"] > 1e-35]
    return (
        torch.tensor([p[k] for p in values], dtype=torch.float64) for k in ("s", "phi", "dphi")
    )


@pytest.mark.parametrize("name", ["js", "le_cam"])
def test_within_a_millionth_of_the_exact_profile(name) -> None:
    s, phi, dphi = points(name)
    got = evaluate(table_of(name), s)
    assert len(s) >= 10
    torch.testing.assert_close(got[0], phi, rtol=1.5e-6, atol=0)
    torch.testing.assert_close(got[1], dphi, rtol=1.5e-6, atol=0)


@pytest.mark.parametrize("name", ["js", "le_cam"])
def test_between_the_knots(name) -> None:
    """Against the integral itself, which `test_divergences.py` checks."""
    d, s = divergence(name), torch.logspace(-8, 2.8, 997, dtype=torch.float64)
    phi, dphi = evaluate(table_of(name), s)
    torch.testing.assert_close(phi, d.phi(s), rtol=1.5e-6, atol=0)
    torch.testing.assert_close(dphi, d.dphi(s), rtol=1e-5, atol=0)


@pytest.mark.parametrize("power", [2, 3, -1])
def test_generators_that_grow_fast(power) -> None:
    """t^p has phi = e^{p(p-1)s/2} - 1, whose logarithm bends fast in log s."""

    def f(t):
        return t**power

    d = divergence(f)
    s = torch.logspace(-8, math.log10(d.last), 500, dtype=torch.float64)[:-1]
    rate = power * (power - 1) / 2
    phi, dphi = evaluate(table_of(f), s)
    torch.testing.assert_close(phi, torch.expm1(rate * s), rtol=2e-5, atol=0)
    torch.testing.assert_close(dphi, rate * torch.exp(rate * s), rtol=2e-5, atol=0)


def test_ends() -> None:
    d, table = divergence("js"), table_of("js")
    far = torch.tensor([1e4, 1e8], dtype=torch.float64)
    phi, dphi = evaluate(table, far)
    torch.testing.assert_close(phi, d.phi(far), rtol=1e-6, atol=0)
    assert (dphi == 0).all()
    near = torch.tensor([1e-12, 1e-30], dtype=torch.float64)
    phi, dphi = evaluate(table, near)
    torch.testing.assert_close(phi, near / 8, rtol=1e-5, atol=0)
    torch.testing.assert_close(dphi, torch.full_like(near, 1 / 8), rtol=1e-5, atol=0)
