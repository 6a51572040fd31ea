"""Prompt templates, and words to fill them with."""

import random
import re
from collections.abc import Sequence

_SLOT = re.compile(r"(\b[Aa] )?\{\}")
_WORD_SLOT = re.compile(r"(\b[Aa] )?\{word\}")


def fill(template: str, subject: str) -> str:
    """Put a subject into every `{}`, with "an" for "a" where it begins with a vowel."""
    return _SLOT.sub(lambda match: _with_article(match, subject), template)


def fill_words(template: str, words: Sequence[str], rng: random.Random) -> str:
    """Put a random word into every `{word}`."""
    return _WORD_SLOT.sub(lambda match: _with_article(match, rng.choice(words)), template)


def _with_article(match: re.Match[str], noun: str) -> str:
    article = match.group(1) or ""
    if article and noun[:1].lower() in "aeiou":
        article = f"{article[0]}n "
    return article + noun


def plain(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def name_words(name: str) -> set[str]:
    """The words of a name in lower case, without punctuation."""
    return set(re.findall(r"[\w'-]+", name.lower()))


def with_plurals(words: set[str]) -> set[str]:
    """The words, and their regular plurals."""
    return words | {word + ending for word in words for ending in ("s", "es")}


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words that are no part of these names, nor a plural of one."""
    taken = with_plurals({word for name in names for word in name_words(name)})
    return [word for word in words if plain(word) not in taken]
