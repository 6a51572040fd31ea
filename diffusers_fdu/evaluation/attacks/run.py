"""Run attacks with several seeds."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from tqdm.auto import tqdm

from ...training.acceleration import without_cudnn_attention
from ...utils.statistics import bootstrap
from ..result import AttackResult, Metric
from .attack import Attack, AttackTarget
from .plain_prompt import Completion, NoiseProbing, Relearning, Removal
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
"""Every attack by name; called, it has its default budget."""


@without_cudnn_attention()
def attack(
    victim: AttackTarget,
    attacks: Sequence[str | Attack] = tuple(ATTACKS),
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
) -> tuple[AttackResult, ...]:
    """Attack a model that is said to have forgotten, with each attack and each seed."""
    check_names([name for name in attacks if isinstance(name, str)])
    if not seeds:
        raise ValueError("attacks need at least one seed")
    runs = [ATTACKS[one]() if isinstance(one, str) else one for one in attacks]
    unattacked = [hit for seed in seeds for hit in victim.hits(victim.prompts, seed)]
    with victim.original() as pipe:
        original = [hit for seed in seeds for hit in victim.hits(victim.prompts, seed, pipe)]
    results = []
    with tqdm(
        total=len(runs) * len(seeds), desc="attack", disable=not progress, unit="run"
    ) as bar:
        for run in runs:
            bar.set_postfix_str(run.name)
            started = time.monotonic()
            outcomes = []
            for seed in seeds:
                outcomes.append(run(victim, seed))
                bar.update()
            seconds = (time.monotonic() - started) / len(seeds)
            results.append(
                AttackResult(
                    name=run.name,
                    success=_success([hit for outcome in outcomes for hit in outcome.hits]),
                    seeds=tuple(seeds),
                    by_seed=tuple(fmean(outcome.hits) for outcome in outcomes),
                    unattacked=fmean(unattacked),
                    original=fmean(original),
                    budget={**outcomes[0].budget, "seconds": round(seconds, 2)},
                    curve=_mean_curve([outcome.curve for outcome in outcomes]),
                    found=tuple(outcome.found for outcome in outcomes if outcome.found),
                )
            )
    return tuple(results)


def check_names(names: Sequence[str]) -> list[str]:
    """Names of `ATTACKS`, where "all" stands for every one; ValueError for an unknown one."""
    for name in names:
        if name not in ATTACKS and name != "all":
            raise ValueError(f"unknown attack {name!r}: choose {', '.join(ATTACKS)}, or all")
    return list(ATTACKS) if "all" in names else list(names)


def _success(hits: Sequence[bool]) -> Metric:
    """The share of hits, the pictures of all runs counted as independent."""
    low, high = bootstrap([float(hit) for hit in hits])
    return Metric(fmean(hits), low, high, count=len(hits))


Curve = tuple[tuple[float, float], ...]


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs of one attack, which have their points at the same places."""
    return tuple(
        (points[0][0], sum(value for _, value in points) / len(points))
        for points in zip(*curves, strict=True)
    )
