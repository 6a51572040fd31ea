"""What is to be forgotten, what takes its place, and the prompts that ask for either."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .templates import fill, fill_words, plain, without

Kind = Literal["object", "style", "prompt"]

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "{}",
        "a {}",
        "a photo of a {}",
        "a drawing of a {}",
        "a {} emoji",
        "a {} with a {word}",
        "a {} in {word} style",
        "a {} emoji in {word} style",
        "a {} on a {word} background",
        "a picture of a {} in {word} style on a {word} background",
    ),
    "style": (
        "{} style",
        "a picture in {} style",
        "a {word} in {} style",
        "a photo of a {word} in {} style",
        "a drawing of a {word} in {} style",
        "a {word} emoji in {} style",
        "an emoji in {} style on a {word} background",
        "a {word} emoji in {} style on a {word} background",
    ),
    "prompt": ("{}",),
}
"""Prompts by kind of concept: `{}` is the concept, `{word}` any word that the tokenizer knows."""


@dataclass(frozen=True)
class NegativeGuidance:
    """An anchor without words: away from the target, as erased stable diffusion (ESD) goes.

        teacher = eps(empty) - scale * (eps(target) - eps(empty))

    The objective of Gandikota et al., "Erasing Concepts from Diffusion Models" (arXiv
    2303.07345), equation 7, here under any divergence. The states are those of the target's own
    pictures.

    Args:
        scale: how far the teacher goes beyond the empty prompt's prediction; 0 is that prediction.

    Raises:
        ValueError: if the scale is negative or not finite.

    Example:
        >>> Concept("dog", NegativeGuidance(scale=2.0)).anchor
        NegativeGuidance(scale=2.0)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int | float) or not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a number of at least 0, got {self.scale!r}")


Anchor = str | NegativeGuidance | None


class Pair(NamedTuple):
    """A target's prompt and what the teacher is asked in its place."""

    target: str
    anchor: str  # the same prompt with the anchor; "" if there is none
    concept: int = 0  # index of the target among those unlearned together
    guidance: float | None = None  # scale of a `NegativeGuidance`, if that is the anchor

    @property
    def drawn(self) -> str:
        """The prompt whose pictures give the states."""
        return self.anchor if self.guidance is None else self.target


@dataclass(frozen=True)
class Concept:
    """A concept to forget and the anchor that takes its place.

    Args:
        target: what to forget, as a prompt would say it, such as "Snoopy".
        anchor: what the model should do instead: a super-class such as "dog", a neighbour, any
            prompt; None or "" is the empty prompt; or a `NegativeGuidance`.
        kind: which templates the two are put into: those for an "object" or for a "style", or
            "prompt", which uses them as they are.
        prompts: prompts of your own in place of the templates, with `{}` where the concept goes
            and `{word}` where any word may stand; or the path of a text file with one on each
            line.
        aliases: other names of the target, such as "Snoopy the beagle".

    Raises:
        ValueError: for an empty name, a name equal to the anchor, an unknown kind, prompts
            without `{}` or with another placeholder, or a file that cannot be read.

    Example:
        >>> concept = Concept("Snoopy", "dog", prompts=["a {} asleep", "{} in the snow"])
        >>> concept.prompts
        ('a {} asleep', '{} in the snow')
        >>> Concept("blob", "noto", kind="style").kind
        'style'
    """

    target: str
    anchor: Anchor = None
    kind: Kind = "object"
    prompts: Sequence[str] | str | Path | None = None
    aliases: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.aliases, str):
            raise ValueError(f"aliases must be a list of names, got the string {self.aliases!r}")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if not isinstance(self.anchor, str | NegativeGuidance | None):
            raise ValueError(
                f"anchor must be a string, a NegativeGuidance or None, got {self.anchor!r}"
            )
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"target must name a concept, got {name!r}")
            if self.anchor_name and plain(name) == plain(self.anchor_name):
                raise ValueError(f"target and anchor are both {name!r}: choose another, or None")
        if self.kind not in TEMPLATES:
            raise ValueError(f"unknown kind {self.kind!r}: choose {', '.join(TEMPLATES)}")
        if self.prompts is not None:
            object.__setattr__(self, "prompts", _checked_prompts(self.prompts))

    @property
    def names(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.target, *self.aliases)

    @property
    def anchor_name(self) -> str:
        """The anchor's words; "" if it has none."""
        return self.anchor if isinstance(self.anchor, str) else ""

    def prompt_pairs(
        self, count: int, words: Sequence[str], rng: random.Random, index: int = 0
    ) -> list[Pair]:
        """Pairs of prompts that differ in the concept alone; its names take turns.

        `words` fill `{word}`; `index` is the concept's among those unlearned together.
        """
        words = without(words, (*self.names, self.anchor_name))
        templates = self.usable_templates(words)
        scale = self.anchor.scale if isinstance(self.anchor, NegativeGuidance) else None
        pairs = []
        for i in range(count):
            name = self.names[i % len(self.names)]
            template = templates[i // len(self.names) % len(templates)]
            template = fill_words(template, words, rng)
            anchor = fill(template, self.anchor_name) if self.anchor_name else ""
            pairs.append(Pair(fill(template, name), anchor, index, scale))
        return pairs

    def usable_templates(self, words: Sequence[str]) -> list[str]:
        """The concept's templates, without those with `{word}` where there are no words."""
        templates = self.prompts if isinstance(self.prompts, tuple) else TEMPLATES[self.kind]
        usable = [template for template in templates if words or "{word}" not in template]
        if not usable:
            raise ValueError("every template has {word}, but the pipe has no tokenizer for words")
        return usable


def _checked_prompts(prompts: Sequence[str] | str | Path) -> tuple[str, ...]:
    if isinstance(prompts, str | Path):
        try:
            lines = Path(prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"cannot read prompts from {str(prompts)!r}: pass a text file with one prompt "
                "on each line, or a list of prompts"
            ) from error
        prompts = [line.strip() for line in lines if line.strip()]
    prompts = tuple(prompts)
    if not prompts:
        raise ValueError("prompts is empty: pass at least one, with {} for the concept")
    for prompt in prompts:
        if "{}" not in prompt:
            raise ValueError(f"prompt {prompt!r} has no {{}} for the concept")
        in_braces = re.findall(r"\{[^{}]*\}|[{}]", prompt)  # or braces that are not closed
        unknown = set(in_braces) - {"{}", "{word}"}
        if unknown:
            raise ValueError(
                f"prompt {prompt!r} has {', '.join(sorted(unknown))}: "
                "only {} for the concept and {word} for any word can be filled"
            )
    return prompts


Target = str | Concept


def concept_from_json(fields: Mapping[str, Any]) -> Concept:
    """The concept that a recipe describes."""
    anchor = fields["anchor"]
    if isinstance(anchor, Mapping):
        anchor = NegativeGuidance(**anchor["NegativeGuidance"])
    return Concept(**{**fields, "anchor": anchor})


def make_concepts(
    target: Target | Sequence[Target], anchor: Anchor | Sequence[Anchor] = None
) -> list[Concept]:
    """The concepts that are to be unlearned together, one for each target.

    Anchors are in the order of the targets; a single one counts for every target that is a string.
    What does not go together is refused with a ValueError.
    """
    targets = [target] if isinstance(target, str | Concept) else list(target)
    if not isinstance(anchor, str | NegativeGuidance | None):
        anchors = list(anchor)
    elif isinstance(target, Concept):
        anchors = [anchor]
    else:  # a Concept in a list brings its own
        anchors = [None if isinstance(each, Concept) else anchor for each in targets]
    if not targets:
        raise ValueError("no target: name at least one concept to forget")
    if len(anchors) != len(targets):
        raise ValueError(f"{len(targets)} targets and {len(anchors)} anchors: pass one for each")
    concepts = []
    for each_target, each_anchor in zip(targets, anchors, strict=True):
        if not isinstance(each_target, Concept):
            concepts.append(Concept(each_target, each_anchor))
        elif each_anchor is None:
            concepts.append(each_target)
        else:
            raise ValueError("the Concept has its own anchor: do not pass another")
    owners: dict[str, int] = {}
    for i, concept in enumerate(concepts):
        for name in map(plain, concept.names):
            if owners.setdefault(name, i) != i:
                raise ValueError(f"{name!r} is to be forgotten twice: name it once")
    for concept in concepts:
        if plain(concept.anchor_name) in owners:
            raise ValueError(
                f"{concept.anchor_name!r} is to be forgotten and is the anchor of "
                f"{concept.target!r}: choose another anchor"
            )
    return concepts
