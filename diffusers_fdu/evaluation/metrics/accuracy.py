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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...utils.statistics import bootstrap, bootstrap_of, means
from ..images import Request
from ..result import Metric

ORDER = "ua ira cra harmonic_mean efficacy specificity generality mace paraphrases".split()
HARMONIC = {"harmonic_mean": ("ua", "ira", "cra"), "mace": ("ua", "ira", "generality")}
Shares = Mapping[str, Sequence[float]]
"""Values of single pictures, 0 or 1, by the name of the metric that is their mean."""


@dataclass(frozen=True)
class Judged:
    """Requests, the judge's answer to each, the targets' domain; ValueError without targets."""

    requests: Sequence[Request]
    answers: Sequence[Mapping[str, str]]
    domain: str

    def __post_init__(self) -> None:
        if not self.right("target", self.domain):
            raise ValueError(f"no picture asks for a target of the {self.domain!r} domain")

    def right(self, part: str, domain: str) -> list[float]:
        """1 where a picture of the part is judged right in the domain, else 0."""
        return [
            float(answer.get(domain) == request.expected[domain])
            for request, answer in zip(self.requests, self.answers, strict=True)
            if request.part == part and domain in request.expected
        ]

    def shares(self) -> Shares:
        """The values of every metric that is the share of some pictures."""
        domains = {d for r in self.requests if r.part == "retain" for d in r.expected}
        efficacy, ira = (self.right(part, self.domain) for part in ("target", "retain"))
        shares = {
            "ua": [1 - value for value in efficacy],
            "ira": ira,
            "cra": [v for d in sorted(domains - {self.domain}) for v in self.right("retain", d)],
            "efficacy": efficacy,
            "specificity": ira,
            "generality": self.right("synonyms", self.domain),
            "paraphrases": self.right("paraphrases", self.domain),
        }
        return {name: values for name, values in shares.items() if values}


def accuracies(after: Judged, before: Judged | None = None) -> dict[str, Metric]:
    """UA, IRA, CRA, MACE's metrics and the harmonic means, each with its interval.

    Metrics of parts that were not drawn are left out: "mace" is the harmonic mean of efficacy,
    specificity and generality, or of the first two where there are no synonyms. `before` holds
    the same requests without the adapter.
    """
    shares = after.shares()
    shares_before = before.shares() if before is not None else {}
    metrics = {
        name: mean_metric(values, shares_before.get(name)) for name, values in shares.items()
    }
    for name, parts in HARMONIC.items() if "ira" in shares else ():
        drawn = [part for part in parts if part in shares]
        metrics[name] = _harmonic_mean(drawn, shares, shares_before)
    return {name: metrics[name] for name in ORDER if name in metrics}


def mean_metric(values: Any, before: Any = None) -> Metric:
    """The mean over pictures, and that of the same pictures without the adapter, if there are."""
    values = np.asarray(values, dtype=float)
    mean_before = None if before is None else float(np.mean(np.asarray(before, dtype=float)))
    return Metric(float(values.mean()), *bootstrap(values.tolist()), mean_before, len(values))


def _harmonic_mean(names: Sequence[str], shares: Shares, shares_before: Shares) -> Metric:
    """The harmonic mean of several shares, of which generality counts as its opposite."""

    def statistic(*groups: np.ndarray) -> np.ndarray:
        named = zip(names, map(means, groups), strict=True)
        return harmonic(*(1 - mean if name == "generality" else mean for name, mean in named))

    def value(values: Shares) -> float:
        return float(statistic(*(np.asarray([values[name]]) for name in names))[0])

    groups = [shares[name] for name in names]
    low, high = bootstrap_of(statistic, groups)
    value_before = value(shares_before) if all(n in shares_before for n in names) else None
    return Metric(value(shares), low, high, value_before, sum(map(len, groups)))


def harmonic(*rows: np.ndarray) -> np.ndarray:
    """Elementwise harmonic mean of rows between 0 and 1; 0 where one of them is."""
    with np.errstate(divide="ignore"):
        return len(rows) / (1 / np.stack(rows)).sum(0)
