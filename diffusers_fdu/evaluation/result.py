"""What an evaluation found."""

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
        name: such as "concept inversion".
        success: share of the attack's pictures that show the target again, over all seeds.
        seeds: of the attack.
        by_seed: success of each seed.
        unattacked: share for the plain prompt on the same model.
        original: share for the plain prompt on the original model.
        floor: success of the same attack on a model that never saw the concept; None: not
            measured.
        budget: what the attack may spend: "steps", "denoiser_rows", "seconds", ...
        curve: (what was spent, success) along the attack, for attacks that have one.
        found: what the attack found, such as an adversarial prompt for each seed.
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
        protocol: name of the protocol.
        about: the protocol in words: what was drawn, how often, and its source.
        targets: what was to be forgotten.
        judge: who said what a picture shows.
        images: number of pictures judged with the adapter.
        seeds: of the pictures.
        settings: of the pipeline's runs, such as num_inference_steps.
        metrics: by name: "ua", "ira", "cra", "harmonic_mean", "clip_score", "fid", ...
        attacks: see `AttackResult`.
        recipe: what trained the adapter.
        versions: of the libraries.
        seconds: by stage.
        weights_sha256: of the adapter's file; None: it was on the pipe, in no file.
        left_out: what the protocol has and was not measured, with the reason.
        before: the pictures without the adapter; None: not kept.
        after: the pictures with it.
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
