"""How a pipe's tokenizers write words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .recorder import TOKENIZERS

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
BEFORE = "a"
"""A word that stands before another one."""


class WordTokens(NamedTuple):
    """A word's tokens.

    Args:
        within: after another word.
        first: at the beginning; as many, but not the same where a space belongs to the token.
    """

    within: list[int]
    first: list[int]


def encoders(pipe: Any) -> tuple[list[list[nn.Embedding]], list[Any]]:
    """The embedding tables of a pipe's text encoders, and the tokenizers that go with them.

    A table may be several modules that share one weight, of which any may be the one that is
    asked.
    """
    tables, tokenizers = [], []
    for name, other in zip(ENCODERS, TOKENIZERS, strict=True):
        encoder, tokenizer = getattr(pipe, name, None), getattr(pipe, other, None)
        if isinstance(encoder, nn.Module) and tokenizer is not None:
            own: Any = encoder.get_input_embeddings()  # type: ignore[operator]
            modules = [m for m in encoder.modules() if getattr(m, "weight", None) is own.weight]
            tables.append([m for m in modules if isinstance(m, nn.Embedding)])
            tokenizers.append(tokenizer)
    return tables, tokenizers


def word_tokens(tokenizer: Any, word: str) -> WordTokens | None:
    """A word's tokens; None if they depend on where it stands, or one of them is unknown."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    before, once, first = ids(BEFORE), ids(f"{BEFORE} {word}"), ids(word)
    within = once[len(before) :]
    if once[: len(before)] != before or not within:
        return None
    if ids(f"{BEFORE} {word} {word}") != before + within + within:
        return None
    if getattr(tokenizer, "unk_token_id", None) in within and len(within) == 1:
        return None
    if first and within[-len(first) :] == first:
        return WordTokens(first, first)  # a space is a token of its own, or none
    return WordTokens(within, first) if len(first) == len(within) else None


def single_tokens(pipe: Any, words: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The words that are one token, the same everywhere, for every tokenizer of the pipe.

    Args:
        pipe: the pipeline.
        words: to choose from.

    Returns:
        Each with its ids.
    """
    _, tokenizers = encoders(pipe)
    found = []
    for word in words:
        own = [word_tokens(tokenizer, word) for tokenizer in tokenizers]
        ids = [one.within for one in own if one is not None]
        if len(ids) == len(tokenizers) and all(len(one) == 1 for one in ids):
            found.append((word, tuple(one[0] for one in ids)))
    return found


def vocabulary(pipe: Any) -> list[str]:
    """Whole words of at least 3 letters in the pipe's first tokenizer; empty without one."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return []
    words = set()
    for token in tokenizer.get_vocab():
        word = _whole_word(token)
        if word is not None:
            words.add(word)
    return sorted(words)


def _whole_word(token: str) -> str | None:
    if token.endswith("</w>"):
        word = token.removesuffix("</w>")
    elif token.startswith(("▁", "Ġ")):
        word = token[1:]
    else:
        return None
    return word.lower() if len(word) >= 3 and word.isascii() and word.isalpha() else None
