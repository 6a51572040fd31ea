"""Shares of pictures that a judge recognises, as the benchmarks of unlearning define them.

UnlearnCanvas (Zhang et al., arXiv 2402.11846):

    UA  = share of the target's pictures that are not judged the target
    IRA = share right in the target's own domain, of pictures without the target
    CRA = share right in the other domain, of the same pictures

MACE (Lu et al., arXiv 2403.06135), section 4.1:

    H = 3 / (1 / (1 - efficacy) + 1 / specificity + 1 / (1 - generality))

with efficacy the share of the target's pictures that are judged the target, generality that of its
synonyms' pictures, both better when small, and specificity what is IRA above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...utils.statistics import bootstrap, bootstrap_of, means
from ..request import Request
from ..result import Metric

Answer = Mapping[str, str]


@dataclass(frozen=True)
class Judged:
    """Judged pictures.

    Args:
        requests: what was asked.
        answers: what the judge saw, as many.
        targets: names of what is to be forgotten.
        domain: of these names, such as "object".

    Raises:
        ValueError: if the numbers differ, or no picture is of the target.
    """

    requests: Sequence[Request]
    answers: Sequence[Answer]
    targets: Sequence[str]
    domain: str

    def __post_init__(self) -> None:
        if len(self.requests) != len(self.answers):
            raise ValueError(f"{len(self.requests)} pictures and {len(self.answers)} answers")
        if not self.of("target"):
            raise ValueError(f"no picture was asked to show {' or '.join(self.targets)}")

    def of(self, part: str) -> list[tuple[Request, Answer]]:
        """The pictures of one part."""
        pairs = zip(self.requests, self.answers, strict=True)
        return [(request, answer) for request, answer in pairs if request.part == part]

    def shows_target(self, part: str) -> list[float]:
        """1 where a picture of the part is judged its own target, else 0."""
        return [
            float(answer.get(self.domain) == request.expected.get(self.domain))
            for request, answer in self.of(part)
        ]

    def right(self, domain: str) -> list[float]:
        """1 where a picture without the targets is judged right in a domain, else 0."""
        return [
            float(answer.get(domain) == request.expected[domain])
            for request, answer in self.of("retain")
            if domain in request.expected
        ]

    @property
    def others(self) -> list[str]:
        """The other domains."""
        found = {domain for request, _ in self.of("retain") for domain in request.expected}
        return sorted(found - {self.domain})

    def shares(self) -> dict[str, list[float]]:
        """Values of each picture, of which a metric is the mean."""
        erased = [1 - value for value in self.shows_target("target")]
        found = {"ua": erased, "ira": self.right(self.domain)}
        found["cra"] = [value for other in self.others for value in self.right(other)]
        found["generality"] = self.shows_target("synonyms")
        found["paraphrases"] = self.shows_target("paraphrases")
        return {name: values for name, values in found.items() if values}


def harmonic(*rows: np.ndarray) -> np.ndarray:
    """Harmonic mean of each place, of rows between 0 and 1; 0 where one of them is."""
    stacked = np.stack(rows)
    with np.errstate(divide="ignore"):
        return len(rows) / (1 / stacked).sum(0)


ORDER = (
    "ua",
    "ira",
    "cra",
    "harmonic_mean",
    "efficacy",
    "specificity",
    "generality",
    "mace",
    "paraphrases",
)


def accuracies(after: Judged, before: Judged | None = None) -> dict[str, Metric]:
    """UA, IRA, CRA, MACE's figures and the harmonic means, each with its interval.

    Args:
        after: with the adapter.
        before: the same requests without it.

    Returns:
        By name: "ua", "ira", "cra"; "efficacy", "specificity", "generality" and "mace", their
        harmonic mean, without generality where there are no synonyms; "paraphrases", the share
        of these that show the target; "harmonic_mean" of UA, IRA and CRA. What was not drawn is
        not there.
    """
    shares = after.shares()
    first = before.shares() if before is not None else {}
    found = {name: _share(values, first.get(name)) for name, values in shares.items()}
    if "ira" in shares:
        found["specificity"] = found["ira"]
    own = after.shows_target("target")
    found["efficacy"] = _share(own, before.shows_target("target") if before else None)
    for name, parts in (
        ("harmonic_mean", ("ua", "ira", "cra")),
        ("mace", ("ua", "ira", "generality")),
    ):
        there = [part for part in parts if part in shares]
        if "ira" in there:
            found[name] = _joint(there, shares, first)
    return {name: found[name] for name in ORDER if name in found}


def _share(values: Sequence[float], before: Sequence[float] | None) -> Metric:
    low, high = bootstrap(values)
    start = float(np.mean(before)) if before else None
    return Metric(float(np.mean(values)), low, high, start, len(values))


def _joint(
    names: Sequence[str], shares: Mapping[str, Sequence[float]], first: Mapping[str, list[float]]
) -> Metric:
    """Harmonic mean of several shares; generality counts as its opposite."""

    def good(name: str, mean: np.ndarray) -> np.ndarray:
        return 1 - mean if name == "generality" else mean

    def statistic(*rows: np.ndarray) -> np.ndarray:
        return harmonic(*(good(n, means(r)) for n, r in zip(names, rows, strict=True)))

    def value(values: Mapping[str, Sequence[float]]) -> float:
        return float(statistic(*(np.asarray([values[name]]) for name in names))[0])

    groups = [shares[name] for name in names]
    low, high = bootstrap_of(statistic, groups)
    before = value(first) if all(name in first for name in names) else None
    return Metric(value(shares), low, high, before, sum(map(len, groups)))
