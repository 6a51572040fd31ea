"""What evaluations of a model rest on: canvas, judge, CLIP, and a model that never saw a concept.

Of the embedded model all of them are shipped. Of others the canvas is that of the protocol, and
the judge a CLIP or classifier of the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.recipe import EMBEDDED
from ..data.concepts import Concept
from ..emoji.loading import ORACLE, load_emoji_clip, load_emoji_judge, load_emoji_oracle
from ..emoji.vocabulary import CONCEPTS, STYLES, SYNONYMS
from .judges import ClipJudge, NamedJudge
from .metrics.clip import ClipScorer
from .prompt_grid import CIFAR10, UNLEARNCANVAS, PromptGrid
from .request import Judge

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


@dataclass(frozen=True)
class EvaluationSetup:
    """What an evaluation rests on.

    Args:
        canvas: what can be asked for.
        judge: says what pictures show.
        clip: compares pictures and words; None: there is none.
        guidance_scale: that the model was made for; None: the pipeline's own.
        oracle: a pipe that never saw the target; None: there is none.
    """

    canvas: PromptGrid
    judge: Judge
    clip: ClipScorer | None = None
    guidance_scale: float | None = None
    oracle: Any = None


def is_embedded(pipe: Any) -> bool:
    """Whether a pipe is the embedded model."""
    return pipe.config.get("_name_or_path") == EMBEDDED


def evaluation_setup(
    pipe: Any,
    concepts: Sequence[Concept],
    protocol: str,
    canvas: PromptGrid | None = None,
    judge: Judge | None = None,
    clip: ClipScorer | str | Path | None = None,
    oracle: Any = None,
) -> EvaluationSetup:
    """What was given, and of the rest what there is.

    Args:
        pipe: the model.
        concepts: what it is to have forgotten.
        protocol: name of the protocol.
        canvas: None: see above.
        judge: None: the embedded model's, or the CLIP, zero-shot.
        clip: a scorer, or the folder or Hub name of a CLIP.
        oracle: a pipe that never saw the target, where the pipe is.

    Raises:
        ValueError: if there is no judge.
    """
    if isinstance(clip, str | Path):
        clip = ClipScorer.from_pretrained(clip, str(pipe.device))
    names = [concept.target for concept in concepts]
    if is_embedded(pipe) and canvas is None:
        clip = clip or ClipScorer(*load_emoji_clip(), "the embedded CLIP")
        own = NamedJudge(load_emoji_judge(), ("object", "style"), "the embedded judge")
        if oracle is None and names == [ORACLE]:
            oracle = load_emoji_oracle(torch_dtype=pipe.dtype)
            oracle.to(pipe.device)
        return EvaluationSetup(_named(EMOJI, concepts), judge or own, clip, 4.0, oracle)
    if canvas is None:
        is_styled = protocol == "unlearncanvas" or concepts[0].kind == "style"
        canvas = UNLEARNCANVAS if is_styled else CIFAR10
    canvas = _named(canvas, concepts)
    if judge is None and clip is None:
        raise ValueError(
            "no judge: pass judge=, or clip= with the folder or the Hub name of a CLIP, such as "
            "openai/clip-vit-base-patch32"
        )
    return EvaluationSetup(canvas, judge or _zero_shot(canvas, clip, concepts), clip, None, oracle)


def _zero_shot(canvas: PromptGrid, clip: Any, concepts: Sequence[Concept]) -> ClipJudge:
    """A CLIP that chooses among the canvas's names, the targets and their anchors."""
    domains = {domain: list(names) for domain, names in canvas.domains.items()}
    for concept in concepts:
        own = domains[canvas.domain_of(concept.target, concept.kind)]
        own += [n for n in (concept.target, concept.anchor_name) if n and n not in own]
    return ClipJudge(clip, domains, {d: prompts[0] for d, prompts in canvas.alone.items()})


def _named(canvas: PromptGrid, concepts: Sequence[Concept]) -> PromptGrid:
    """The canvas with the targets' aliases among the synonyms."""
    synonyms = dict(canvas.synonyms)
    for concept in concepts:
        known = synonyms.get(concept.target, ())
        synonyms[concept.target] = tuple(dict.fromkeys([*known, *concept.aliases]))
    return replace(canvas, synonyms=synonyms)
