"""From drawn pictures to metrics with intervals."""

from collections.abc import Sequence

from torch import Tensor

from ...data.templates import fill
from ..images import ImageSet
from ..judges import judge_images
from ..protocols import UnlearningTask
from ..result import Metric
from ..setup import EvaluationSetup
from .accuracy import Judged, accuracies, mean_metric
from .clip import ClipScorer
from .distances import Extractor, distance_interval, features, fid, kid, pixel_drift


def measure_metrics(
    before: ImageSet, after: ImageSet, setup: EvaluationSetup, extractor: Extractor | None = None
) -> tuple[dict[str, Metric], tuple[str, ...]]:
    """The protocol's metrics by name, and what had to be left out, with the reason.

    Before and after are pictures of the same requests without the adapter and with it. Distances
    are of the extractor's features, by default the CLIP's.
    """
    names, clip, task = setup.protocol.metrics, setup.clip, setup.task
    metrics: dict[str, Metric] = {}
    left_out: list[str] = []
    if "accuracy" in names:
        judged_before, judged_after = (
            Judged(s.requests, judge_images(setup.judge, s.images), task.domain)
            for s in (before, after)
        )
        metrics |= accuracies(judged_after, judged_before)
    if "clip" in names:
        if clip is None:
            left_out.append("CLIP score and accuracy: no CLIP was given")
        else:
            metrics |= _clip_metrics(before, after, task, clip)
    retained = before.of("retain").images, after.of("retain").images
    if "drift" in names:
        metrics["pixel_drift"] = mean_metric(pixel_drift(*retained))
    for name, distance in (("fid", fid), ("kid", kid)):
        if name not in names:
            continue
        if extractor is not None:
            a, b = (features(images, extractor) for images in retained)
        elif clip is not None:
            a, b = (clip.image_features(images).double() for images in retained)
        else:
            left_out.append(f"{name.upper()}: neither an extractor nor a CLIP was given")
            continue
        metrics[name] = Metric(distance(a, b), *distance_interval(distance, a, b), count=len(b))
    return metrics, tuple(left_out)


def _clip_metrics(
    before: ImageSet, after: ImageSet, task: UnlearningTask, clip: ClipScorer
) -> dict[str, Metric]:
    def scores(part: str, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        first, second = (clip.scores(s.of(part).images, texts) for s in (before, after))
        return first, second

    plainest = task.prompt_grid.alone[task.domain][0]
    targets = [request.expected[task.domain] for request in after.of("target").requests]
    target_before, target_after = scores("target", [fill(plainest, name) for name in targets])
    metrics = {"clip_score": mean_metric(target_after, target_before)}
    anchors = dict(zip(task.targets, task.anchors, strict=False))
    if all(anchors.get(target) for target in task.targets):
        anchor_words = [fill(plainest, anchors[name]) for name in targets]
        anchor_before, anchor_after = scores("target", anchor_words)
        metrics["clip_accuracy"] = mean_metric(
            (target_after > anchor_after).float(), (target_before > anchor_before).float()
        )
    prompts = [request.prompt for request in after.of("retain").requests]
    others_before, others_after = scores("retain", prompts)
    return {**metrics, "clip_score_others": mean_metric(others_after, others_before)}
