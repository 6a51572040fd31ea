from __future__ import annotations

import math

import pytest
import torch

from diffusers_fdu.divergences.conjugates import CONJUGATES, Conjugate, conjugate

GENERATORS = {
    "kl": lambda t: t * torch.log(t),
    "reverse_kl": lambda t: -torch.log(t),
    "hellinger": lambda t: (torch.sqrt(t) - 1) ** 2 / 2,
    "js": lambda t: (t * torch.log(t) - (1 + t) * torch.log((1 + t) / 2)) / 2,
    "chi2": lambda t: (t - 1) ** 2,
    "tv": lambda t: (t - 1).abs() / 2,
}
"""Written out once more, as docs/theory.md has them."""

V = torch.linspace(-6, 6, 241, dtype=torch.float64)
T = torch.exp(torch.linspace(-40, 40, 160_001, dtype=torch.float64))


def test_there_is_a_generator_for_each() -> None:
    assert set(GENERATORS) == set(CONJUGATES)


@pytest.mark.parametrize("name", CONJUGATES)
def test_the_conjugate_is_the_supremum(name) -> None:
    """f*(u) against a search over t, for every u that the activation reaches."""
    c = CONJUGATES[name]
    u = c.activation(V)
    on_grid = torch.stack([(x * T - GENERATORS[name](T)).max() for x in u])
    torch.testing.assert_close(c.conjugate(u), on_grid, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONJUGATES)
def test_fenchel_young(name) -> None:
    """f(t) + f*(u) >= u t for every pair of a grid."""
    c = CONJUGATES[name]
    t = torch.exp(torch.linspace(-8, 8, 321, dtype=torch.float64))[:, None]
    u = c.activation(V)[None]
    gap = GENERATORS[name](t) + c.conjugate(u) - u * t
    assert (gap >= -1e-12 * (1 + (u * t).abs())).all()


@pytest.mark.parametrize("name", [n for n in CONJUGATES if n != "tv"])  # tv's f' is a step
def test_it_is_tight_where_u_is_the_slope_of_f(name) -> None:
    c = CONJUGATES[name]
    t = torch.exp(torch.linspace(-3, 3, 61, dtype=torch.float64)).requires_grad_()
    f = GENERATORS[name](t)
    (u,) = torch.autograd.grad(f.sum(), t)
    torch.testing.assert_close(c.conjugate(u), u * t - f, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CONJUGATES)
def test_the_range_of_the_activation_lies_in_the_domain(name) -> None:
    """Where f* is finite, to v = +-30, and g increases."""
    v = torch.linspace(-30, 30, 601, dtype=torch.float64)
    c = CONJUGATES[name]
    u = c.activation(v)
    assert torch.isfinite(c.conjugate(u)).all()
    assert (u.diff() >= 0).all() and u[-1] > u[0]
    below = {"reverse_kl": 0.0, "hellinger": 0.5, "js": math.log(2) / 2, "tv": 0.5}
    assert (u <= below.get(name, math.inf)).all()


@pytest.mark.parametrize("name", CONJUGATES)
def test_the_composed_form_is_the_composition(name) -> None:
    c = CONJUGATES[name]
    ours = c.bound(V, V)[1]
    torch.testing.assert_close(ours, c.conjugate(c.activation(V)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CONJUGATES)
def test_float32_stays_finite_with_its_gradient(name) -> None:
    v = torch.tensor([-60.0, -20.0, 0.0, 20.0, 60.0], requires_grad=True)
    real, other = CONJUGATES[name].bound(v, v)
    (real - other).sum().backward()
    assert torch.isfinite(real).all() and torch.isfinite(other).all()
    assert torch.isfinite(v.grad).all()


def test_what_is_not_known() -> None:
    with pytest.raises(ValueError, match="'le_cam' has no conjugate here: choose kl"):
        conjugate("le_cam")
    with pytest.raises(ValueError, match="'helinger' is unknown: choose kl"):
        conjugate("helinger")
    with pytest.raises(TypeError, match="got function"):
        conjugate(lambda t: t)
    own = Conjugate("own", lambda u: u**2, lambda v: v)
    assert conjugate(own) is own
