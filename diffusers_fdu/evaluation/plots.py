"""Pictures: what each divergence does to near and far samples, and what it trades for what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..divergences.profiles import DIVERGENCES, divergence
from .comparison import Comparison

FARTHEST = 32.0  # s of the profiles' pictures
PROFILES = tuple(name for name in DIVERGENCES if name != "reverse_kl")  # which is that of kl
MARKERS = "osD^vPX*<>"


def _figure(**options: Any) -> Any:
    """A figure that draws to files alone, whatever the user's own backend."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "diffusers-fdu[plot]"') from error
    return Figure(layout="constrained", **options)


def plot_profiles(path: str | Path, fs: Sequence[str] = PROFILES) -> None:
    """Draw phi and phi' of divergences over the distance sqrt(s) into a PNG.

    phi' is drawn relative to its value at s = 1, where training puts every f on one scale: above
    1 a sample is pulled harder than under kl, below 1 less.
    """
    figure = _figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    distance = torch.linspace(0.02, FARTHEST**0.5, 400, dtype=torch.float64)
    s, one = distance.square(), torch.ones(1, dtype=torch.float64)
    for i, f in enumerate(fs):
        d = divergence(f)
        style = "--" if i >= 5 else "-"
        left.plot(distance, d.phi(s), style, label=d.name)
        right.plot(distance, d.dphi(s) / d.dphi(one), style, label=d.name)
    left.set(xlabel="distance √s", ylabel="φ(s)", ylim=(0, 3), title="the divergence")
    right.set(xlabel="distance √s", ylabel="φ′(s) / φ′(1)", yscale="log", ylim=(3e-2, 3e1))
    right.set_title("the pull on a sample, relative to kl")
    left.legend()
    figure.savefig(path, dpi=150)


def plot_tradeoff(comparison: Comparison, path: str | Path) -> None:
    """Draw erasure against preservation into a PNG.

    Each f has a curve over strength, with 95 % confidence intervals over seeds; a dotted line is
    the Pareto front.
    """
    figure = _figure(figsize=(6.5, 5))
    axes = figure.subplots()
    averages = sorted(comparison.averages(), key=lambda a: a.strength)
    for i, f in enumerate(dict.fromkeys(point.f for point in comparison.points)):
        curve = [a for a in averages if a.f == f]
        erased, kept = [a.erased for a in curve], [a.kept for a in curve]
        axes.errorbar(
            [estimate.mean for estimate in kept],
            [estimate.mean for estimate in erased],
            xerr=[estimate.margin for estimate in kept],
            yerr=[estimate.margin for estimate in erased],
            marker=MARKERS[i % len(MARKERS)],
            capsize=2,
            linewidth=1,
            label=f,
        )
    front = comparison.front()
    kept_means, erased_means = [a.kept.mean for a in front], [a.erased.mean for a in front]
    axes.plot(kept_means, erased_means, "k:", linewidth=2, label="Pareto front", zorder=0)
    axes.plot(comparison.before[1], comparison.before[0], "k+", markersize=10, label="before")
    axes.set(xlabel="kept", ylabel="erased", xlim=(None, 1.02), ylim=(-0.02, 1.04))
    axes.set_title(f"unlearning {comparison.target}")
    axes.legend()
    figure.savefig(path, dpi=150)
