r"""Convex conjugates of the generators, for the variational form of an f-divergence.

    D_f(P || Q) = sup_T  E_P[T] - E_Q[f*(T)],      f*(u) = sup_{t > 0} u t - f(t)

The supremum is over functions T into the domain of f*; it is reached at T = f'(dP/dQ). A critic's
raw output v becomes T = g(v) with an increasing g whose range is inside that domain, as in f-GAN
(Nowozin, Cseke, Tomioka, arXiv 1606.00709, table 2, whose generators have other constants).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .profiles import DIVERGENCES

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Conjugate:
    """f* of a generator, and a map of the real line into its domain.

    Args:
        name: name of the divergence.
        conjugate: f*(u), elementwise and differentiable on the range of `activation`.
        activation: g(v), elementwise, increasing and differentiable.
        composed: f*(g(v)) where it has a form that rounds less or overflows later.

    Example:
        >>> import torch
        >>> pearson = Conjugate("pearson", lambda u: u + u**2 / 4, lambda v: v)
        >>> [t.item() for t in pearson.bound(torch.ones(1), torch.ones(1))]
        [1.0, 1.25]
    """

    name: str
    conjugate: Function = field(repr=False)
    activation: Function = field(repr=False)
    composed: Function | None = field(default=None, repr=False)

    def bound(self, real: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The terms T(x_P) and f*(T(x_Q)) of the bound, sample by sample.

        `real` and `other` are the critic's raw outputs on samples of P, (B,), and of Q, (B',).
        """
        if self.composed is not None:
            return self.activation(real), self.composed(other)
        return self.activation(real), self.conjugate(self.activation(other))


def _chi2_conjugate(u: Tensor) -> Tensor:
    # Below u = -2 the supremum over t >= 0 is at t = 0.
    return torch.where(u > -2, u * (u / 4 + 1), -1.0)


CONJUGATES: dict[str, Conjugate] = {
    c.name: c
    for c in (
        Conjugate("kl", lambda u: torch.exp(u - 1), lambda v: v),
        Conjugate("reverse_kl", lambda u: -1 - (-u).log(), lambda v: -(-v).exp(), lambda v: v - 1),
        Conjugate(
            "hellinger",
            lambda u: u / (1 - 2 * u),
            lambda v: -torch.expm1(-v) / 2,
            lambda v: torch.expm1(v) / 2,
        ),
        Conjugate(
            "js",
            lambda u: -torch.log(2 - torch.exp(2 * u)) / 2,
            lambda v: (math.log(2) - softplus(-v)) / 2,
            lambda v: (softplus(v) - math.log(2)) / 2,
        ),
        Conjugate("chi2", _chi2_conjugate, lambda v: v),
        Conjugate("tv", lambda u: u, lambda v: torch.tanh(v) / 2),
    )
}
"""Conjugates by name, for the generators of `DIVERGENCES`."""


def conjugate(f: str | Conjugate) -> Conjugate:
    """The conjugate that f names or is; a ValueError if it is not known here."""
    if isinstance(f, Conjugate):
        return f
    if not isinstance(f, str):
        raise TypeError(f"f must be a name or a Conjugate, got {type(f).__name__}")
    if f in CONJUGATES:
        return CONJUGATES[f]
    reason = "has no conjugate here" if f in DIVERGENCES else "is unknown"
    choices = ", ".join(CONJUGATES)
    raise ValueError(f"divergence {f!r} {reason}: choose {choices}, or pass a Conjugate")
