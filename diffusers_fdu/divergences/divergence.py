"""A divergence: its profile, the profile's slope, and what is said of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Profile = Callable[[Tensor], Tensor]
Form = tuple[Literal["linear", "exponential", "tv", "table"], float, float]

EXPONENT_CAP = {torch.float32: 60.0, torch.float64: 600.0}
"""Largest exponent of an exponential profile; beyond it the profile continues as its tangent.

exp overflows at 88.7 in float32 and 709.8 in float64. The margin leaves room for the tangent
to go on to s = 1e12, and for the factors that multiply phi and dphi. Clamping instead would
give the farthest samples no gradient.
"""


class _ProfileFunction(torch.autograd.Function):
    """phi with dphi as its derivative, so that integrals need no autograd through their nodes."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, div: Any) -> Tensor:
        ctx.save_for_backward(s)
        ctx.div = div
        return div._phi(s)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (s,) = ctx.saved_tensors
        return grad * ctx.div._dphi(s), None


@dataclass(frozen=True)
class Divergence:
    """An f-divergence between two Gaussians of equal covariance, as a profile of s.

        phi(s) = E[f(exp(sqrt(s) z - s/2))],  z ~ N(0, 1),     s = ||delta||^2 / sigma^2

    `divergence` makes one by name or from a generator; docs/theory.md derives the equation. `phi`
    and `dphi` raise a TypeError if s is not a float32 or float64 tensor.

    Args:
        name: how the divergence is shown and saved.
        _phi: profile, a map from s of shape (B,) to phi(s) of shape (B,).
        _dphi: its derivative, of the same shapes.
        bound: supremum of phi, infinite when unbounded.
        formula: the generator f(t), for people.
        form: how a kernel computes the profile: ("linear", slope, 0), ("exponential", rate,
            scale), ("tv", 0, 0), or ("table", 0, 0) for splines of phi and dphi up to `last`.
        last: s from which on a table of phi is constant if bounded, else its tangent.

    Example:
        >>> import torch
        >>> divergence("tv").phi(torch.tensor([0.0, 1.0, 100.0]))
        tensor([0.0000, 0.3829, 1.0000])
        >>> half_kl = Divergence("half_kl", lambda s: s / 4, lambda s: torch.full_like(s, 0.25))
        >>> half_kl.dphi(torch.tensor([1.0]))
        tensor([0.2500])
    """

    name: str
    _phi: Profile = field(repr=False)
    _dphi: Profile = field(repr=False)
    bound: float = math.inf
    formula: str = ""
    form: Form = ("table", 0.0, 0.0)
    last: float = 800.0

    def phi(self, s: Tensor) -> Tensor:
        """Divergence at s = ||delta||^2 / sigma^2 (dimensionless), any shape; differentiable."""
        return _ProfileFunction.apply(_checked(s), self)

    def dphi(self, s: Tensor) -> Tensor:
        """Derivative of `phi` in s, same shape as s."""
        return self._dphi(_checked(s))


def _checked(s: Tensor) -> Tensor:
    if not isinstance(s, Tensor) or s.dtype not in EXPONENT_CAP:
        kind = getattr(s, "dtype", type(s).__name__)
        raise TypeError(f"s must be a float32 or float64 tensor, got {kind}")
    return s
