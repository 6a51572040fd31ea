"""Profiles against mpmath's 40-digit integrals (tests/data/profiles.json) and their properties."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffusers_fdu.divergences.divergence import Divergence
from diffusers_fdu.divergences.profiles import DIVERGENCES, divergence

PROFILES = json.loads((Path(__file__).parents[1] / "data" / "profiles.json").read_text())
CLOSED = [n for n in PROFILES if n not in ("js", "le_cam")]


def columns(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    points = PROFILES[name]["points"]
    return tuple(torch.tensor([p[k] for p in points], dtype=dtype) for k in ("s", "phi", "dphi"))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_in_float64(name: str) -> None:
    s, phi, dphi = columns(name, torch.float64)
    tolerance = 1e-9 if name in CLOSED else 1e-8
    torch.testing.assert_close(divergence(name).phi(s), phi, rtol=tolerance, atol=0)
    torch.testing.assert_close(divergence(name).dphi(s), dphi, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_in_float32(name: str) -> None:
    s, phi, dphi = columns(name, torch.float32)
    keep = (phi < 1e34) & (dphi < 1e34)
    # float32 rounds s itself, which an exponent of 40 magnifies to 40 ulp.
    rtol = torch.clamp(s * 3, min=1) * 1e-6
    assert (((divergence(name).phi(s) - phi) / phi).abs() <= rtol)[keep].all()
    assert (((divergence(name).dphi(s) - dphi) / dphi).abs() <= rtol)[keep].all()


@pytest.mark.parametrize("name", PROFILES)
def test_autograd_is_dphi(name: str) -> None:
    s = torch.linspace(0.1, 30, 50, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(divergence(name).phi(s).sum(), s)
    torch.testing.assert_close(grad, divergence(name).dphi(s.detach()))


@pytest.mark.parametrize("name", PROFILES)
def test_derivative_is_the_slope_of_phi(name: str) -> None:
    s = torch.linspace(0.1, 30, 50, dtype=torch.float64)
    d = divergence(name)
    slope = (d.phi(s + 1e-5) - d.phi(s - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, d.dphi(s), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", [*DIVERGENCES, "alpha=3", "alpha=-1", "alpha=0.3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_monotone_and_bounded_everywhere(name: str, dtype: torch.dtype) -> None:
    s = torch.cat([torch.zeros(1, dtype=dtype), torch.logspace(-12, 6, 200, dtype=dtype)])
    phi, dphi = divergence(name).phi(s), divergence(name).dphi(s)
    assert torch.isfinite(phi).all() and torch.isfinite(dphi).all()
    assert phi[0] == 0 and (phi.diff() >= -1e-6 * phi[1:].abs()).all() and (dphi >= 0).all()
    assert (phi <= divergence(name).bound * (1 + 1e-6)).all()


GENERATORS = {
    "kl": lambda t: t * torch.log(t),
    "reverse_kl": lambda t: -torch.log(t) + 3,
    "hellinger": lambda t: (torch.sqrt(t) - 1) ** 2 / 2 + 5 * (t - 1),
    "chi2": lambda t: (t - 1) ** 2,
    "js": lambda t: (t * torch.log(t) - (1 + t) * torch.log((1 + t) / 2)) / 2,
    "le_cam": lambda t: (t - 1) ** 2 / (2 * (t + 1)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_user_generator_gives_the_profile(name: str) -> None:
    s, phi, dphi = columns(name, torch.float64)
    d = divergence(GENERATORS[name])
    torch.testing.assert_close(d.phi(s), phi, rtol=1e-6, atol=0)
    torch.testing.assert_close(d.dphi(s), dphi, rtol=1e-6, atol=0)


def test_user_generator_with_a_kink() -> None:
    s, phi, dphi = columns("tv", torch.float64)
    d = divergence(lambda t: (t - 1).abs() / 2)
    torch.testing.assert_close(d.phi(s), phi, rtol=2e-2, atol=0)
    torch.testing.assert_close(d.dphi(s), dphi, rtol=2e-2, atol=0)


def test_exponential_profile_continues_as_its_tangent() -> None:
    d = divergence("chi2")
    s = torch.tensor([59.0, 60.0, 100.0, 200.0])
    assert d.dphi(s)[1] == d.dphi(s)[2] == d.dphi(s)[3] > d.dphi(s)[0]
    slope = (d.phi(s)[3] - d.phi(s)[2]) / 100
    torch.testing.assert_close(slope, d.dphi(s)[3])


def test_tv_has_a_gradient_of_constant_norm_near_zero() -> None:
    delta = torch.tensor([1e-3, 1e-6, 1e-9, 0.0], dtype=torch.float64, requires_grad=True)
    divergence("tv").phi(delta**2).sum().backward()
    assert delta.grad is not None
    expected = 1 / math.sqrt(2 * math.pi)
    torch.testing.assert_close(delta.grad[:3], torch.full((3,), expected, dtype=torch.float64))
    assert delta.grad[3] == 0


@pytest.mark.parametrize(
    ("f", "message"),
    [
        ("helinger", "unknown divergence 'helinger': choose kl"),
        ("alpha=x", "cannot read 'alpha=x'"),
        ("alpha=inf", "cannot read 'alpha=inf'"),
        (lambda t: -((t - 1) ** 2), "not convex"),
        (lambda t: torch.log(t - 1), "not finite"),
        (lambda t: t.sum(), "shape"),
        (lambda t: 1.0, "float"),
    ],
)
def test_bad_divergences_are_refused(f: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(f)  # type: ignore[arg-type]


def test_types_are_checked() -> None:
    with pytest.raises(TypeError, match="int"):
        divergence(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bfloat16"):
        divergence("kl").phi(torch.ones(2, dtype=torch.bfloat16))
    assert isinstance(divergence(DIVERGENCES["kl"]), Divergence)
