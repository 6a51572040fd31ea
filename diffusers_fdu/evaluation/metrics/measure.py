"""From judged pictures to figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...data.templates import fill
from ...utils.statistics import bootstrap
from ..images import ImageSet
from ..protocols import UnlearningTask
from ..result import Metric
from .accuracy import Answer, Judged, accuracies
from .clip import ClipScorer
from .distances import Extractor, features, fid, interval, kid, pixel_drift


@dataclass(frozen=True)
class Pictures:
    """Pictures of the same requests, and what the judge saw.

    Args:
        before: without the adapter.
        after: with it.
        answers_before: of the first.
        answers_after: of the second.
    """

    before: ImageSet
    after: ImageSet
    answers_before: Sequence[Answer]
    answers_after: Sequence[Answer]


def measure_metrics(
    pictures: Pictures,
    question: UnlearningTask,
    wanted: Sequence[str],
    clip: ClipScorer | None = None,
    extractor: Extractor | None = None,
) -> tuple[dict[str, Metric], tuple[str, ...]]:
    """Every figure that is wanted and can be had.

    Args:
        pictures: see `Pictures`.
        question: what was to be forgotten.
        wanted: "accuracy", "clip", "fid", "kid", "drift".
        clip: for "clip", and for distances without an extractor.
        extractor: of features for distances.

    Returns:
        The figures by name, and what was left out, with the reason.

    Raises:
        ImportError: if torchmetrics is not installed, for "fid" and "kid".
    """
    found: dict[str, Metric] = {}
    left_out: list[str] = []
    if "accuracy" in wanted:
        found.update(_accuracies(pictures, question))
    if "clip" in wanted:
        if clip is None:
            left_out.append("CLIP score and accuracy: no CLIP was given")
        else:
            found.update(_clip(pictures, question, clip))
    if "drift" in wanted:
        found["pixel_drift"] = _mean(pixel_drift(*_kept(pictures)))
    for name in ("fid", "kid"):
        if name not in wanted:
            continue
        if extractor is None and clip is None:
            left_out.append(f"{name.upper()}: neither an extractor nor a CLIP was given")
        else:
            found[name] = _distance(name, pictures, clip, extractor)
    return found, tuple(left_out)


def _accuracies(pictures: Pictures, question: UnlearningTask) -> dict[str, Metric]:
    rows = question.targets, question.domain
    after = Judged(pictures.after.requests, pictures.answers_after, *rows)
    before = Judged(pictures.before.requests, pictures.answers_before, *rows)
    return accuracies(after, before)


def _clip(pictures: Pictures, question: UnlearningTask, clip: ClipScorer) -> dict[str, Metric]:
    plain = question.canvas.alone[question.domain][0]
    own = {p: pictures_of.of("target") for p, pictures_of in _both(pictures)}
    words = [fill(plain, r.expected[question.domain]) for r in own["after"].requests]
    scores = {when: clip.scores(gallery.images, words) for when, gallery in own.items()}
    found = {"clip_score": _mean(scores["after"], scores["before"])}
    anchors = dict(zip(question.targets, question.anchors, strict=False))
    if all(anchors.get(target) for target in question.targets):
        other = [fill(plain, anchors[r.expected[question.domain]]) for r in own["after"].requests]
        nearer = {
            when: (scores[when] > clip.scores(gallery.images, other)).float()
            for when, gallery in own.items()
        }
        found["clip_accuracy"] = _mean(nearer["after"], nearer["before"])
    kept = {when: gallery.of("retain") for when, gallery in _both(pictures)}
    asked = [request.prompt for request in kept["after"].requests]
    others = {when: clip.scores(gallery.images, asked) for when, gallery in kept.items()}
    found["clip_score_others"] = _mean(others["after"], others["before"])
    return found


def _both(pictures: Pictures) -> list[tuple[str, ImageSet]]:
    return [("before", pictures.before), ("after", pictures.after)]


def _kept(pictures: Pictures) -> tuple[Sequence[Any], Sequence[Any]]:
    return pictures.before.of("retain").images, pictures.after.of("retain").images


def _distance(
    name: str, pictures: Pictures, clip: ClipScorer | None, extractor: Extractor | None
) -> Metric:
    """Of the pictures that should stay, before against after."""

    def vectors(images: Sequence[Any]) -> Tensor:
        if extractor is not None:
            return features(images, extractor)
        assert clip is not None
        return clip.image_features(images).double()

    before, after = map(vectors, _kept(pictures))
    measure = {"fid": fid, "kid": kid}[name]
    low, high = interval(measure, before, after)
    return Metric(measure(before, after), low, high, count=len(after))


def _mean(values: Tensor, before: Tensor | None = None) -> Metric:
    rows: Mapping[str, Any] = {"after": values.tolist()}
    low, high = bootstrap(rows["after"])
    start = None if before is None else before.mean().item()
    return Metric(values.mean().item(), low, high, start, len(values))
