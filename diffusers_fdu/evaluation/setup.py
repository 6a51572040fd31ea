"""What the evaluation of a model rests on: its protocol, its task, and who judges the pictures.

Of the embedded model everything is shipped: prompt grid, judge, CLIP, and for one concept a model
that never saw it. Of other models the prompt grid is the protocol's, and the judge is the user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.recipe import EMBEDDED
from ..data.concepts import Concept
from ..emoji.loading import ORACLE, load_emoji_clip, load_emoji_judge, load_emoji_oracle
from ..emoji.vocabulary import CONCEPTS, STYLES, SYNONYMS
from .judges import ClipJudge, Judge, NamedJudge
from .metrics.clip import ClipScorer
from .prompt_grid import CIFAR10, UNLEARNCANVAS, PromptGrid
from .protocols import Protocol, UnlearningTask

EMOJI = PromptGrid(
    {"object": CONCEPTS, "style": STYLES},
    "a {object} emoji in {style} style",
    {
        "object": ("a {} emoji", "a picture of a {}", "a {}"),
        "style": ("an emoji in {} style", "a picture in {} style"),
    },
    SYNONYMS,
)
"""The embedded model's concepts and styles."""
EMOJI_GUIDANCE = 4.0


@dataclass(frozen=True)
class EvaluationSetup:
    """What an evaluation rests on; the oracle is a pipe that never saw the target."""

    protocol: Protocol
    task: UnlearningTask
    judge: Judge
    clip: ClipScorer | None = None
    oracle: Any = None


def evaluation_setup(
    pipe: Any,
    concepts: Sequence[Concept],
    protocol: Protocol,
    prompt_grid: PromptGrid | None = None,
    judge: Judge | None = None,
    clip: ClipScorer | str | Path | None = None,
    oracle: Any = None,
) -> EvaluationSetup:
    """Complete what was passed by what is shipped for the model.

    The judge is then the embedded model's, or the CLIP, zero-shot. ValueError if there is neither,
    or if the concepts are of different domains.
    """
    if isinstance(clip, str | Path):
        clip = ClipScorer.from_pretrained(clip, str(pipe.device))
    if pipe.config.get("_name_or_path") == EMBEDDED and prompt_grid is None:
        prompt_grid = EMOJI
        clip = clip or ClipScorer(*load_emoji_clip(), "the embedded CLIP")
        judge = judge or NamedJudge(load_emoji_judge(), tuple(EMOJI.domains), "the embedded judge")
        if oracle is None and [concept.target for concept in concepts] == [ORACLE]:
            oracle = load_emoji_oracle(torch_dtype=pipe.dtype)
            oracle.to(pipe.device)
        if protocol.guidance_scale is None:
            protocol = replace(protocol, guidance_scale=EMOJI_GUIDANCE)
    elif prompt_grid is None:
        has_styles = protocol.name == "unlearncanvas" or concepts[0].kind == "style"
        prompt_grid = UNLEARNCANVAS if has_styles else CIFAR10
    task = _unlearning_task(prompt_grid, concepts)
    if judge is None and clip is None:
        raise ValueError(
            "no judge: pass judge=, or clip= with the folder or the Hub name of a CLIP, such as "
            "openai/clip-vit-base-patch32"
        )
    return EvaluationSetup(protocol, task, judge or _zero_shot_judge(clip, task), clip, oracle)


def _unlearning_task(grid: PromptGrid, concepts: Sequence[Concept]) -> UnlearningTask:
    """The concepts on the grid, their aliases among its synonyms."""
    domains = {c.target: grid.domain_of(c.target, c.kind) for c in concepts}
    if len(set(domains.values())) > 1:
        listing = ", ".join(f"{target}: {domain}" for target, domain in domains.items())
        raise ValueError(f"targets of different domains ({listing}): pass concepts of one")
    synonyms = dict(grid.synonyms)
    for concept in concepts:
        words = [*synonyms.get(concept.target, ()), *concept.aliases]
        synonyms[concept.target] = tuple(dict.fromkeys(words))
    anchors = {concept.target: concept.anchor_name for concept in concepts}
    domain = domains[concepts[0].target]
    grid = replace(grid, synonyms=synonyms)
    return UnlearningTask(grid, list(anchors), domain, list(anchors.values()))


def _zero_shot_judge(clip: Any, task: UnlearningTask) -> ClipJudge:
    """A CLIP that chooses among the grid's names, the targets and their anchors."""
    grid, domain = task.prompt_grid, task.domain
    names = [*grid.domains[domain], *task.targets, *filter(None, task.anchors)]
    domains = {**grid.domains, domain: list(dict.fromkeys(names))}
    return ClipJudge(clip, domains, {d: prompts[0] for d, prompts in grid.alone.items()})
