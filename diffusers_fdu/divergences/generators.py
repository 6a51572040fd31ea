"""Profiles of convex generators that a user gives, by numerical integration."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .divergence import EXPONENT_CAP, Divergence, Profile

Generator = Callable[[Tensor], Tensor]

USER_S_CAP = 50.0
"""Largest s at which a user's generator is integrated; beyond it phi continues as its tangent.

The mass of t^p lies around (p - 1/2) sqrt(s), so the nodes reach 2.5 sqrt(s) + 8 to hold p = 3.
At s = 50 that is r = exp(182), the largest for which r^3 stays inside float64. In float32 the
tangent begins earlier if log phi reaches `EXPONENT_CAP`.
"""

REACH = 8.0


def expectation(h: Profile, reach: Tensor, nodes: int = 129) -> Tensor:
    """Trapezoid of h(t) exp(-t^2/2) / sqrt(2 pi), h including the density, over |t| <= reach."""
    unit = torch.linspace(-1.0, 1.0, nodes, dtype=torch.float64, device=reach.device)
    values = h(reach * unit)
    total = values.sum(-1) - (values[..., 0] + values[..., -1]) / 2
    return total * reach.squeeze(-1) * (2.0 / ((nodes - 1) * math.sqrt(2 * math.pi)))


def from_generator(f: Generator) -> Divergence:
    """The divergence of a generator, integrated numerically.

    Raises:
        ValueError: if it is not convex, not finite, or changes the shape of its input.
    """
    name = getattr(f, "__name__", type(f).__name__)
    _check_generator(f, name)
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = f(one)
        (slope,) = torch.autograd.grad(value.sum(), one, allow_unused=True)
    at_one = value.detach()
    slope = torch.zeros_like(at_one) if slope is None else slope

    def phi64(s: Tensor) -> Tensor:
        root = torch.sqrt(s).unsqueeze(-1)

        def integrand(t: Tensor) -> Tensor:
            x = root * t
            # Without its affine part f is 0 and flat at r = 1, as phi must be at s = 0.
            generator = f(torch.exp(x)) - at_one.to(x.device)
            generator = generator - slope.to(x.device) * torch.expm1(x)
            return torch.exp(-((t + root / 2) ** 2) / 2) * generator

        return expectation(integrand, 2.5 * root + REACH, 769)

    grid = torch.linspace(0, USER_S_CAP, 201, dtype=torch.float64)
    small = torch.log(phi64(grid).clamp(min=1)) <= EXPONENT_CAP[torch.float32]
    caps = {torch.float32: grid[small].max().item(), torch.float64: USER_S_CAP}

    def tangent(s: Tensor) -> tuple[Tensor, Tensor]:
        """Phi and its slope at s, or at the cap and continued from there."""
        with torch.enable_grad():
            inside = s.detach().double().clamp(1e-30, caps[s.dtype]).requires_grad_()
            value = phi64(inside)
            (grad,) = torch.autograd.grad(value.sum(), inside)
        return value.detach() + grad * (s.double() - inside.detach()), grad

    return Divergence(
        f"generator:{name}",  # which no name can be mistaken for
        lambda s: torch.where(s > 0, tangent(s)[0], 0.0).to(s.dtype),
        lambda s: tangent(s)[1].to(s.dtype),
        formula="given by the user",
        last=caps[torch.float32],
    )


def _check_generator(f: Generator, name: str) -> None:
    x = torch.linspace(-12, 12, 97, dtype=torch.float64)
    t = torch.cat([torch.exp(x), torch.ones(1, dtype=torch.float64)]).sort().values
    value = f(t)
    if not isinstance(value, Tensor) or value.shape != t.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"generator {name!r} maps shape {tuple(t.shape)} to {shape}")
    if not torch.isfinite(value).all():
        at = t[~torch.isfinite(value)][0].item()
        raise ValueError(f"generator {name!r} is not finite at t={at:g}: f needs all t > 0")
    # Convex means that the slopes of its chords never fall, but for rounding.
    width = t[1:] - t[:-1]
    chord = (value[1:] - value[:-1]) / width
    scale = (value[1:].abs() + value[:-1].abs()) / width
    falls = chord[1:] - chord[:-1] < -1e-12 * (scale[1:] + scale[:-1])
    if falls.any():
        raise ValueError(f"generator {name!r} is not convex near t={t[1:-1][falls][0].item():g}")
