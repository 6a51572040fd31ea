"""What a comparison of divergences found: means over seeds, the Pareto front, what to take."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import NamedTuple

from ..divergences.choice import AutoDivergence, Preference
from ..utils.io import as_json, read_json, writable_folder, write_json, write_text
from ..utils.statistics import Estimate, estimate

ENOUGH = 0.9  # the share of the largest erasure that "preserve" asks for


@dataclass(frozen=True)
class Point:
    """One trained adapter at one strength, its weight on the pipe.

    `erased` and `kept`, 0 to 1, say how far the target is gone and the rest still there. Seconds
    are those of the training, without recording.
    """

    f: str
    seed: int
    strength: float
    erased: float
    kept: float
    steps: int
    seconds: float


class Average(NamedTuple):
    """The mean over all seeds of one f at one strength."""

    f: str
    strength: float
    erased: Estimate
    kept: Estimate

    @property
    def harmonic(self) -> float:
        """The harmonic mean of erased and kept."""
        return harmonic_mean((self.erased.mean, self.kept.mean))


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Args:
        target: the name of what was unlearned, for titles.
        points: every adapter at every strength.
        before: (erased, kept) of the pipe as it was.

    Example:
        >>> from diffusers_fdu.evaluation.comparison import Point
        >>> gone = Point("chi2", seed=0, strength=1.0, erased=1.0, kept=0.5, steps=50, seconds=40)
        >>> mild = Point("kl", seed=0, strength=0.5, erased=0.9, kept=0.9, steps=50, seconds=40)
        >>> comparison = Comparison("dog", (gone, mild), before=(0.0, 1.0))
        >>> comparison.best("erase").f, comparison.best("balance").f
        ('chi2', 'kl')
    """

    target: str
    points: tuple[Point, ...]
    before: tuple[float, float]

    def averages(self) -> list[Average]:
        """Means over seeds, with 95 % confidence intervals, by f and strength."""
        groups: dict[tuple[str, float], list[Point]] = {}
        for point in self.points:
            groups.setdefault((point.f, point.strength), []).append(point)
        return [
            Average(f, strength, estimate([p.erased for p in g]), estimate([p.kept for p in g]))
            for (f, strength), g in groups.items()
        ]

    def front(self) -> list[Average]:
        """The Pareto front: those that no other beats in one mean without losing in the other."""
        averages = self.averages()

        def beats(a: Average, b: Average) -> bool:
            ahead = a.erased.mean - b.erased.mean, a.kept.mean - b.kept.mean
            return min(ahead) >= 0 and max(ahead) > 0

        front = [a for a in averages if not any(beats(other, a) for other in averages)]
        return sorted(front, key=lambda a: (a.erased.mean, a.f, a.strength))

    def best(self, prefer: Preference = "balance") -> Average:
        """The point that a preference picks.

        Args:
            prefer: "erase" picks the largest erasure, and of equals the one that keeps most;
                "balance" the largest harmonic mean of both; "preserve" what keeps most among
                those with at least `ENOUGH` of the largest erasure.

        Raises:
            ValueError: for an unknown preference.
        """
        AutoDivergence(prefer)  # refuses an unknown preference
        averages = self.averages()
        if prefer == "erase":
            return max(averages, key=lambda a: (a.erased.mean, a.kept.mean))
        if prefer == "balance":
            return max(averages, key=lambda a: a.harmonic)
        most = max(a.erased.mean for a in averages)
        enough = [a for a in averages if a.erased.mean >= ENOUGH * most]
        return max(enough, key=lambda a: (a.kept.mean, a.erased.mean))

    def table(self) -> str:
        """The averages in Markdown; the Pareto front is marked."""
        front = {(a.f, a.strength) for a in self.front()}
        lines = ["| f | strength | erased | kept | harmonic mean | front |", "|---" * 6 + "|"]
        lines.append(f"| (before) | 0 | {self.before[0]:.3f} | {self.before[1]:.3f} | | |")
        for a in self.averages():
            mark = "*" if (a.f, a.strength) in front else ""
            cells = (a.f, f"{a.strength:g}", a.erased, a.kept, f"{a.harmonic:.3f}", mark)
            lines.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(lines)

    def save(self, directory: str | Path) -> Path:
        """Write `comparison.json` and `comparison.md`; returns the folder."""
        folder = writable_folder(directory)
        write_json(folder / "comparison.json", as_json(asdict(self)))
        write_text(folder / "comparison.md", self.table() + "\n")
        return folder


def load_comparison(directory: str | Path) -> Comparison:
    """Read what `Comparison.save` wrote.

    Args:
        directory: the folder that it was saved to.

    Raises:
        ValueError: if it holds no comparison.

    Example:
        >>> folder = Comparison("dog", (), before=(0.0, 1.0)).save("runs/dog")
        >>> load_comparison(folder).before
        (0.0, 1.0)
    """
    path = Path(directory) / "comparison.json"
    try:
        content = read_json(path)
        points = tuple(Point(**point) for point in content["points"])
        return Comparison(content["target"], points, tuple(content["before"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no comparison in {str(path)!r}: {error}") from error
