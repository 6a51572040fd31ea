r"""Profiles without a closed form, as splines that a kernel evaluates.

phi and phi' of an integral profile are smooth in log s, and so are their logarithms, except that
a bounded profile's phi' falls like exp(-s/8), which is kept out of the table:

    log phi(s)  ~  c(u)           u = log s
    log phi'(s) ~  d(u) - s/8     bounded;  d(u) otherwise

c and d are cubic splines. 64 knots a decade hold phi to 1.5e-6 for js and le_cam, and to 2e-5
for generators that grow like t^3, relative (`tests/divergences/test_triton_profile_table.py`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..divergence import Profile

KNOTS_PER_DECADE = 64
FIRST = 1e-6  # below, profiles are powers of s, which the first tangent continues


class Table(NamedTuple):
    """Cubic coefficients of log phi and of log phi' over intervals of log s.

    The rows are the tangent below the first knot, the intervals, and the constant past the last
    knot; each has four coefficients of c and four of d.
    """

    rows: Tensor  # (knots + 1, 8) float32
    first: float  # log s of the first knot
    step: float  # distance of the knots in log s
    decay: float  # what d leaves out of log phi': -decay s
    is_finite: bool  # whether all coefficients are


def profile_table(phi: Profile, dphi: Profile, last: float, is_bounded: bool) -> Table:
    """The table of a profile in float64 from `FIRST` to `last`.

    From there on a bounded profile is constant, another one its tangent.
    """
    decay = 1 / 8 if is_bounded else 0.0
    first = math.log(FIRST)
    count = math.ceil((math.log(last) - first) / math.log(10) * KNOTS_PER_DECADE) + 1
    u = torch.linspace(first, math.log(last), count, dtype=torch.float64)
    s = torch.exp(u)
    step = (u[-1] - u[0]).item() / (count - 1)
    columns = [torch.log(phi(s)), torch.log(dphi(s)) + decay * s]
    rows = torch.cat([_cubics(values) for values in columns], dim=1).float()
    return Table(rows, first, step, decay, bool(torch.isfinite(rows).all()))


def _cubics(values: Tensor) -> Tensor:
    """Coefficients of the not-a-knot spline through values at unit steps, (knots + 1, 4).

    With second derivatives m at the knots, m[i-1] + 4 m[i] + m[i+1] = 6 (v[i-1] - 2 v[i] + v[i+1])
    inside; at both ends the third derivative does not jump: m[0] - 2 m[1] + m[2] = 0.
    """
    n = len(values)
    system = torch.eye(n, dtype=values.dtype) * 4
    system[0, :3] = system[-1, -3:] = torch.tensor([1.0, -2.0, 1.0], dtype=values.dtype)
    inner = torch.arange(1, n - 1)
    system[inner, inner - 1] = system[inner, inner + 1] = 1
    right = torch.zeros_like(values)
    right[1:-1] = 6 * (values[2:] - 2 * values[1:-1] + values[:-2])
    second = torch.linalg.solve(system, right)
    slope = values.diff() - (2 * second[:-1] + second[1:]) / 6
    rows = values.new_zeros(n + 1, 4)
    rows[1:n] = torch.stack([values[:-1], slope, second[:-1] / 2, second.diff() / 6], dim=1)
    rows[0, :2] = torch.stack([values[0], slope[0]])
    rows[n, 0] = values[-1]
    return rows
