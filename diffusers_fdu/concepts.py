"""What is to be forgotten, what takes its place, and the prompts that ask for either."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["object", "style"]

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
}
"""Prompts by kind of concept: `{}` is the concept, `{word}` any word the tokenizer knows."""


@dataclass(frozen=True)
class Concept:
    """A concept to forget and the anchor that takes its place.

    Args:
        target: what to forget, as a prompt would say it, such as "Snoopy".
        anchor: what the model should do instead, such as "dog"; None or "" is the empty prompt.
        kind: "object" or "style": which `TEMPLATES` the two are put into.
        templates: prompts of your own instead, with `{}` where the concept goes.

    Raises:
        ValueError: for an empty target, a target equal to the anchor, an unknown kind, or a
            template without `{}`.
    """

    target: str
    anchor: str | None = None
    kind: Kind = "object"
    templates: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, str) or not self.target.strip():
            raise ValueError(f"target must name a concept, got {self.target!r}")
        if not isinstance(self.anchor, str | None):
            raise ValueError(f"anchor must be a string or None, got {self.anchor!r}")
        if self.anchor is not None and _plain(self.target) == _plain(self.anchor):
            raise ValueError(
                f"target and anchor are both {self.target!r}: choose another anchor, "
                "or None for the empty prompt"
            )
        if self.kind not in TEMPLATES:
            raise ValueError(f"unknown kind {self.kind!r}: choose {', '.join(TEMPLATES)}")
        if self.templates is not None:
            object.__setattr__(self, "templates", tuple(self.templates))
        for template in self.templates or ():
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the concept")

    def prompt_pairs(
        self, count: int, words: Sequence[str], rng: random.Random
    ) -> list[tuple[str, str]]:
        """`count` pairs (target prompt, anchor prompt) that differ in the concept alone.

        Args:
            count: number of pairs.
            words: fillers for `{word}`; templates that need one are skipped if there is none.
            rng: source of the fillers.
        """
        words = without(words, (self.target, self.anchor or ""))
        templates = self.usable_templates(words)
        pairs = []
        for i in range(count):
            template = fill_words(templates[i % len(templates)], words, rng)
            anchor = fill(template, self.anchor) if self.anchor else ""
            pairs.append((fill(template, self.target), anchor))
        return pairs

    def usable_templates(self, words: Sequence[str]) -> list[str]:
        """The concept's templates, less those with `{word}` where there are no words."""
        templates = list(self.templates or TEMPLATES[self.kind])
        usable = [t for t in templates if words or "{word}" not in t]
        if not usable:
            raise ValueError("every template has {word}, but the pipe has no tokenizer for words")
        return usable


def fill(template: str, subject: str) -> str:
    """Put a subject into every `{}`, with "an" for "a" where it begins with a vowel."""
    return _SLOT.sub(lambda match: _with_article(match, subject), template)


def fill_words(template: str, words: Sequence[str], rng: random.Random) -> str:
    """Put a random word into every `{word}`."""
    return _WORD_SLOT.sub(lambda match: _with_article(match, rng.choice(words)), template)


_SLOT = re.compile(r"(\b[Aa] )?\{\}")
_WORD_SLOT = re.compile(r"(\b[Aa] )?\{word\}")


def _with_article(match: re.Match[str], noun: str) -> str:
    article = match.group(1) or ""
    if article and noun[:1].lower() in "aeiou":
        article = f"{article[0]}n "
    return article + noun


def without(words: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The words that are no part of the taken names."""
    parts = {part for name in taken for part in _plain(name).split()}
    return [word for word in words if _plain(word) not in parts]


def vocabulary(pipe: Any) -> list[str]:
    """Whole words of at least 3 letters in the pipe's first tokenizer; empty without one."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return []
    words = set()
    for token in tokenizer.get_vocab():
        if token.endswith("</w>"):
            word = token.removesuffix("</w>")
        elif token.startswith(("▁", "Ġ")):
            word = token[1:]
        else:
            continue
        if len(word) >= 3 and word.isascii() and word.isalpha():
            words.add(word.lower())
    return sorted(words)


def retain_prompts(
    concept: Concept,
    retain: Sequence[str] | None,
    count: int,
    words: Sequence[str],
    rng: random.Random,
) -> list[str]:
    """`count` prompts whose pictures must stay as they are.

    Args:
        concept: what is unlearned; its words are never retained.
        retain: what matters to the user, each used as it is, and single words in the concept's
            templates too. None: words of the vocabulary in those templates, which needs neither
            data nor knowledge of the other concepts.
        count: number of prompts.
        words: the tokenizer's vocabulary.
        rng: source of the choices.

    Raises:
        ValueError: if a prompt of `retain` has all words of the target, or it is a lone string.
    """
    if isinstance(retain, str):
        raise ValueError(f"retain must be a list of prompts, got the string {retain!r}")
    named = list(retain or ())
    for name in named:
        if set(_plain(concept.target).split()) <= set(_plain(name).split()):
            raise ValueError(f"cannot retain {name!r}: it asks for the target")
    free = without(words, (concept.target,))
    subjects = named or without(free, (concept.anchor or "",))
    if not subjects:
        return [""] * count
    templates = concept.usable_templates(free)
    prompts = []
    for i in range(count):
        subject = rng.choice(subjects)
        noun = re.sub(r"^(a|an|the) ", "", subject)
        if named and (i % 2 == 0 or " " in noun):
            prompts.append(subject)
        else:
            prompts.append(fill(fill_words(rng.choice(templates), free, rng), noun))
    return prompts


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
