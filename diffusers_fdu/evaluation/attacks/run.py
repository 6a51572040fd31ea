"""Run attacks with several seeds."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from tqdm.auto import tqdm

from ...training.acceleration import without_cudnn_attention
from ..metrics.accuracy import mean_metric
from ..result import AttackResult
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
            # Runs of one attack have the points of their curves at the same places.
            points = zip(*(outcome.curve for outcome in outcomes), strict=True)
            curve = tuple((at[0][0], fmean(value for _, value in at)) for at in points)
            results.append(
                AttackResult(
                    name=run.name,
                    success=mean_metric([hit for outcome in outcomes for hit in outcome.hits]),
                    seeds=tuple(seeds),
                    by_seed=tuple(fmean(outcome.hits) for outcome in outcomes),
                    unattacked=fmean(unattacked),
                    original=fmean(original),
                    budget={**outcomes[0].budget, "seconds": round(seconds, 2)},
                    curve=curve,
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
