"""Run attacks with several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from ...training.acceleration import without_cudnn_attention
from ...utils.statistics import bootstrap
from ..result import AttackResult, Metric
from .attack import Attack, AttackOutcome, AttackTarget
from .probing import Completion, NoiseProbing
from .relearning import Relearning, Removal
from .search import ConceptInversion, GreedySearch, PromptSearch

ATTACKS: Mapping[str, Callable[[], Attack]] = {
    "inversion": ConceptInversion,
    "prompt-search": PromptSearch,
    "greedy-search": GreedySearch,
    "noise": NoiseProbing,
    "completion": Completion,
    "relearning": Relearning,
    "removal": Removal,
}
"""Every attack at its default budget."""


@without_cudnn_attention()
def attack(
    attack_target: AttackTarget,
    attacks: Sequence[str | Attack] = tuple(ATTACKS),
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
) -> tuple[AttackResult, ...]:
    """Attack a model that is said to have forgotten.

    Args:
        attack_target: the model under attack. Its pipe is left as it was.
        attacks: names of `ATTACKS`, or attacks.
        seeds: of each attack.
        progress: show a progress bar.

    Raises:
        ValueError: for an unknown name, or no seeds.
    """
    check_names([one for one in attacks if isinstance(one, str)])
    chosen = [ATTACKS[one]() if isinstance(one, str) else one for one in attacks]
    if not seeds:
        raise ValueError("attacks need at least one seed")
    own = attack_target.asked(attack_target.target)
    plain = [hit for seed in seeds for hit in attack_target.hits(own, seed)]
    with attack_target.original() as pipe:
        original = [hit for seed in seeds for hit in attack_target.hits(own, seed, pipe)]
    results = []
    total = len(chosen) * len(seeds)
    with tqdm(total=total, desc="attack", disable=not progress, unit="run") as bar:
        for one in chosen:
            started = time.monotonic()
            found = _runs(one, attack_target, seeds, bar)
            seconds = (time.monotonic() - started) / len(seeds)
            results.append(
                AttackResult(
                    name=one.name,
                    success=_share(found),
                    seeds=tuple(seeds),
                    by_seed=tuple(_mean(run.hits) for run in found),
                    unattacked=_mean(plain),
                    original=_mean(original),
                    budget={**one.budget, "seconds": round(seconds, 2)},
                    curve=_averaged([run.curve for run in found]),
                    found=tuple(run.found for run in found if run.found),
                )
            )
    return tuple(results)


def check_names(names: Sequence[str]) -> list[str]:
    """Names of `ATTACKS`; "all" stands for every one.

    Raises:
        ValueError: for an unknown name.
    """
    for name in names:
        if name not in ATTACKS and name != "all":
            raise ValueError(f"unknown attack {name!r}: choose {', '.join(ATTACKS)}, or all")
    return list(ATTACKS) if "all" in names else list(names)


def _runs(
    one: Attack, attack_target: AttackTarget, seeds: Sequence[int], bar: tqdm
) -> list[AttackOutcome]:
    found = []
    for seed in seeds:
        bar.set_postfix_str(one.name)
        found.append(one(attack_target, seed))
        bar.update()
    return found


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _share(found: Sequence[AttackOutcome]) -> Metric:
    """Of the pictures of all runs, as if they were independent."""
    hits = [float(hit) for run in found for hit in run.hits]
    low, high = bootstrap(hits)
    return Metric(sum(hits) / len(hits), low, high, count=len(hits))


def _averaged(
    curves: Sequence[tuple[tuple[float, float], ...]],
) -> tuple[tuple[float, float], ...]:
    """The mean curve; all runs of an attack have the same places."""
    return tuple(
        (points[0][0], sum(value for _, value in points) / len(points))
        for points in zip(*curves, strict=True)
    )
