"""Figures in words: what a metric is called, which way is better, how it is written."""

from __future__ import annotations

from typing import NamedTuple

from ..result import Evaluation, Metric


class Named(NamedTuple):
    """A metric in words.

    Args:
        title: its name.
        meaning: in one line.
        is_share: between 0 and 1, and written in percent.
        better: "more", "less" or "": neither.
    """

    title: str
    meaning: str
    is_share: bool = True
    better: str = "more"


METRICS = {
    "ua": Named("UA", "the target's pictures that are not judged the target"),
    "ira": Named("IRA", "the others' pictures judged right in the target's own domain"),
    "cra": Named("CRA", "the others' pictures judged right in the other domain"),
    "harmonic_mean": Named("Harmonic mean", "of UA, IRA and CRA"),
    "mace": Named("MACE", "harmonic mean of efficacy, specificity and generality"),
    "efficacy": Named("Efficacy", "the target's pictures that show the target", better="less"),
    "specificity": Named("Specificity", "the others' pictures judged right: IRA"),
    "generality": Named("Generality", "pictures of synonyms that show the target", better="less"),
    "paraphrases": Named("Paraphrases", "that still show the target", better="less"),
    "clip_score": Named(
        "CLIP score, target", "its pictures against its words, 0 to 2.5", False, "less"
    ),
    "clip_score_others": Named(
        "CLIP score, others", "their pictures against their prompts, 0 to 2.5", False
    ),
    "clip_accuracy": Named(
        "CLIP accuracy", "the target's pictures nearer to it than to the anchor", better="less"
    ),
    "fid": Named("FID", "of the others' pictures, before against after", False, "less"),
    "kid": Named("KID", "of the others' pictures, before against after", False, "less"),
    "pixel_drift": Named(
        "Pixel drift", "of the others' pictures at equal seed, 0 to 1", False, "less"
    ),
}


def named(name: str) -> Named:
    """A metric in words; of unknown ones the name itself."""
    return METRICS.get(name, Named(name, "", False, ""))


def written(name: str, value: float | None) -> str:
    """A figure as text; "" if there is none."""
    if value is None:
        return ""
    return f"{value:.1%}" if named(name).is_share else f"{value:.3g}"


def interval(name: str, metric: Metric) -> str:
    """Its bounds as text; "" if they are not known."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{written(name, metric.low)}, {written(name, metric.high)}]"


def headline(evaluation: Evaluation) -> str:
    """What was found, in a sentence of measured numbers."""
    targets = " and ".join(f'"{target}"' for target in evaluation.targets)
    metrics, parts = evaluation.metrics, []
    if (ua := metrics.get("ua")) is not None:
        verb, whose = ("is", "its") if len(evaluation.targets) == 1 else ("are", "their")
        parts.append(f"{targets} {verb} gone from {_bounded(ua)} of {whose} pictures")
    if (ira := metrics.get("ira")) is not None:
        parts.append(f"{_bounded(ira)} of the others are still right")
    return "; ".join(parts) + "." if parts else f"{targets}: nothing was judged."


def _bounded(metric: Metric) -> str:
    bounds = ""
    if metric.low is not None and metric.high is not None:
        bounds = f" [{metric.low:.0%}, {metric.high:.0%}]"
    return f"{metric.value:.0%}{bounds}"
