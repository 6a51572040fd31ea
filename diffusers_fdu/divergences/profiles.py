r"""f-divergences between the reverse steps of two diffusion models, as profiles of one number.

Both reverse steps are Gaussians of the same covariance, so with the squared distance

    s = ||pred_student - pred_teacher||^2 / sigma^2

their likelihood ratio is r = exp(sqrt(s) z - s/2), z ~ N(0, 1), and every f-divergence is a
function of s alone, its *profile*:

    phi(s)  = E[f(r)]                    the divergence
    dphi(s) = E[r^2 f''(r)] / 2          its derivative (Ito's formula)

Profiles without a closed form are one-dimensional integrals. The shift z = sqrt(s)/2 + t makes
them symmetric,

    phi(s) = exp(-s/8) E_t[exp(-x/2) f(exp(x))],   x = sqrt(s) t,   t ~ N(0, 1),

and the trapezoid rule converges exponentially on them.

Reference: A Unified Framework for Diffusion Model Unlearning with f-Divergence (arXiv
2509.21167). The profiles outside its alpha-family are derived in docs/theory.md.
"""

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
_SATURATED = 800.0  # bounded profiles are within exp(-100) of their bound from here on


def _expectation(h: Profile, reach: Tensor, nodes: int = 129) -> Tensor:
    """Trapezoid of h(t) exp(-t^2/2) / sqrt(2 pi), h including the density, over |t| <= reach."""
    unit = torch.linspace(-1.0, 1.0, nodes, dtype=torch.float64, device=reach.device)
    values = h(reach * unit)
    total = values.sum(-1) - (values[..., 0] + values[..., -1]) / 2
    return total * reach.squeeze(-1) * (2.0 / ((nodes - 1) * math.sqrt(2 * math.pi)))


def _linear(name: str, slope: float, formula: str) -> Divergence:
    def dphi(s: Tensor) -> Tensor:
        return torch.full_like(s, slope)

    return Divergence(name, lambda s: slope * s, dphi, math.inf, formula, ("linear", slope, 0.0))


def _exponential(name: str, rate: float, scale: float, formula: str) -> Divergence:
    """phi(s) = scale (exp(rate s) - 1), continued by its tangent past the exponent cap."""

    def phi(s: Tensor) -> Tensor:
        exponent = rate * s
        inside = exponent.clamp(max=EXPONENT_CAP[s.dtype])
        return scale * (torch.expm1(inside) + torch.exp(inside) * (exponent - inside))

    def dphi(s: Tensor) -> Tensor:
        return scale * rate * torch.exp((rate * s).clamp(max=EXPONENT_CAP[s.dtype]))

    bound = -scale if rate < 0 else math.inf
    return Divergence(name, phi, dphi, bound, formula, ("exponential", rate, scale))


def _alpha(a: float) -> Divergence:
    name = f"alpha={a!r}".removesuffix(".0")
    if not math.isfinite(a):
        raise ValueError(f"alpha must be finite, got {a}")
    if a == 1:
        return _linear(name, 0.5, "t log t - t + 1")
    if a == 0:
        return _linear(name, 0.5, "-log t + t - 1")
    k = a * (a - 1)
    return _exponential(name, k / 2, 1 / k, f"(t^a - a t - (1 - a)) / (a (a - 1)), a = {a:g}")


def _tv_phi(s: Tensor) -> Tensor:
    return torch.erf(torch.sqrt(s) / (2 * math.sqrt(2)))


def _tv_dphi(s: Tensor) -> Tensor:
    # The floor keeps the limit s -> 0 finite, so that the gradient dphi * delta has no NaN.
    return torch.exp(-s / 8) * torch.rsqrt(s.clamp(min=1e-37)) / (2 * math.sqrt(2 * math.pi))


def _symmetric(name: str, h: Profile, d: Profile, bound: float, formula: str) -> Divergence:
    """A divergence with t f(1/t) = f(t).

    exp(-x/2) f(exp(x)) = exp(|x|/2) h(|x|), and dphi's integrand is d(|x|), at most 1 and even.
    """

    def phi(s: Tensor) -> Tensor:
        root = torch.sqrt(s.double().clamp(max=_SATURATED)).unsqueeze(-1)

        def integrand(t: Tensor) -> Tensor:
            # exp(-s/8 + |x|/2 - t^2/2) in one exponent, which is never positive.
            return torch.exp(-((t.abs() - root / 2) ** 2) / 2) * h(root * t.abs())

        return _expectation(integrand, root / 2 + REACH).to(s.dtype)

    def dphi(s: Tensor) -> Tensor:
        root = torch.sqrt(s.double()).unsqueeze(-1)
        # d decays like exp(-|x|/2), so |x| <= 80 holds its mass.
        reach = torch.clamp(80.0 / root, max=REACH)
        mean = _expectation(lambda t: torch.exp(-(t**2) / 2) * d(root * t.abs()), reach, 257)
        return (torch.exp(-s.double() / 8) * mean).to(s.dtype)

    return Divergence(name, phi, dphi, bound, formula)


def _js_h(x: Tensor) -> Tensor:
    decay = torch.exp(-x)
    far = (-x * decay - (1 + decay) * (torch.log1p(decay) - math.log(2))) / 2
    small = x.clamp(max=1.0)  # near 0 the form above loses digits to cancellation
    near = torch.sinh(small / 2) * small / 2 - torch.cosh(small / 2) * torch.log1p(
        2 * torch.sinh(small / 4) ** 2
    )
    return torch.where(x < 1, near * torch.exp(-x / 2), far)


def _js_d(x: Tensor) -> Tensor:
    return torch.exp(-x / 2) / (1 + torch.exp(-x)) / 4  # sech(x/2) / 8


def _le_cam_h(x: Tensor) -> Tensor:
    return torch.expm1(-x) ** 2 / (2 * (1 + torch.exp(-x)))


def _le_cam_d(x: Tensor) -> Tensor:
    return 2 * (torch.exp(-x / 2) / (1 + torch.exp(-x))) ** 3  # sech(x/2)^3 / 4


def _from_generator(f: Generator) -> Divergence:
    """The divergence of a generator, integrated numerically; see `divergence`."""
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

        return _expectation(integrand, 2.5 * root + REACH, 769)

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


DIVERGENCES: dict[str, Divergence] = {
    d.name: d
    for d in (
        _linear("kl", 0.5, "t log t"),
        _linear("reverse_kl", 0.5, "-log t"),
        _linear("jeffreys", 1.0, "(t - 1) log t"),
        _exponential("hellinger", -1 / 8, -1.0, "(sqrt t - 1)^2 / 2"),
        _exponential("chi2", 1.0, 1.0, "(t - 1)^2"),
        Divergence("tv", _tv_phi, _tv_dphi, 1.0, "|t - 1| / 2", ("tv", 0.0, 0.0)),
        _symmetric("js", _js_h, _js_d, math.log(2), "(t log t - (1 + t) log((1 + t)/2)) / 2"),
        _symmetric("le_cam", _le_cam_h, _le_cam_d, 1.0, "(t - 1)^2 / (2 (t + 1))"),
    )
}
"""Divergences by name; "alpha=<a>" and callables come on top, see `divergence`."""


def divergence(f: str | Divergence | Generator) -> Divergence:
    """The divergence that f names, is, or generates.

    Args:
        f: a name of `DIVERGENCES`, "alpha=0.3", a `Divergence`, or a convex generator: a callable
            that maps a float64 tensor of likelihood ratios t > 0 to f(t), elementwise and
            differentiably. Its affine part, and so f(1) and f'(1), is subtracted: it does not
            change the divergence.

    Raises:
        ValueError: for an unknown name, or a generator that is not convex, not finite, or
            changes the shape of its input.
        TypeError: for anything else.

    Example:
        >>> divergence("hellinger").bound
        1.0
        >>> import torch
        >>> pearson = divergence(lambda t: (t - 1) ** 2)
        >>> [d.phi(torch.tensor([1.0])).item() for d in (pearson, divergence("chi2"))]
        [1.718281..., 1.718281...]
    """
    if isinstance(f, Divergence):
        return f
    if callable(f):
        return _from_generator(f)
    if not isinstance(f, str):
        raise TypeError(f"f must be a name, a Divergence or a callable, got {type(f).__name__}")
    if f in DIVERGENCES:
        return DIVERGENCES[f]
    if f.startswith("alpha="):
        try:
            return _alpha(float(f.removeprefix("alpha=")))
        except ValueError as error:
            raise ValueError(f"cannot read {f!r}: use alpha=<a number>") from error
    choices = ", ".join([*DIVERGENCES, "alpha=<a>"])
    raise ValueError(f"unknown divergence {f!r}: choose {choices}, or pass a Divergence")
