"""What an evaluation measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..adapters.evaluation_file import Metric
from .images import ImageSet


@dataclass(frozen=True)
class AttackResult:
    """How often an attack brought the concept back.

    Args:
        name: the attack's name, such as "concept inversion".
        success: the share of the attack's pictures, over all seeds, that show the target again.
        seeds: the seeds of the attack.
        by_seed: the success of each seed.
        unattacked: the share for the plain prompt on the same model.
        original: the share for the plain prompt on the original model.
        floor: the success of the same attack on a model that never saw the concept, if measured.
        budget: what a run may spend: "steps", "denoiser_rows", "seconds", ...
        curve: (what was spent, success) along the attack, for attacks that have one.
        found: what each seed found, such as an adversarial prompt.
    """

    name: str
    success: Metric
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    unattacked: float
    original: float
    floor: Metric | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What was measured of an adapter.

    Args:
        protocol: the protocol's name.
        about: the protocol in words.
        targets: the concepts that were to be forgotten.
        judge: the name of the judge.
        images: the number of pictures judged with the adapter.
        seeds: the seeds of the pictures.
        settings: arguments of the pipeline's runs, such as num_inference_steps.
        metrics: metrics by name: "ua", "ira", "cra", "harmonic_mean", "clip_score", "fid", ...
        attacks: one result for each attack.
        recipe: the adapter's recipe.
        versions: versions of the libraries.
        seconds: seconds by stage.
        weights_sha256: digest of the adapter's file; None if the adapter was in no file.
        left_out: what the protocol has and was not measured, with the reason.
        before: the pictures without the adapter, if kept.
        after: the pictures with the adapter, if kept.
    """

    protocol: str
    about: str
    targets: tuple[str, ...]
    judge: str
    images: int
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    attacks: tuple[AttackResult, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    weights_sha256: str | None = None
    left_out: tuple[str, ...] = ()
    before: ImageSet | None = field(default=None, repr=False, compare=False)
    after: ImageSet | None = field(default=None, repr=False, compare=False)
