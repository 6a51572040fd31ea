"""How a pipe's tokenizers write words."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .recorder import TOKENIZERS

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PRECEDING_WORD = "a"
WHOLE_WORD = re.compile(r"([A-Za-z]{3,})</w>|[▁Ġ]([A-Za-z]{3,})")  # as tokenizers write it


class WordTokens(NamedTuple):
    """A word's tokens, which are not the same everywhere where a space belongs to the token."""

    within: list[int]  # after another word
    first: list[int]  # at the beginning of a text, equally many


def text_encoders(pipe: Any) -> tuple[list[list[nn.Embedding]], list[Any]]:
    """The embedding tables of a pipe's text encoders, and their tokenizers.

    A table may be several modules that share one weight, of which any may be the one in use.
    """
    tables, tokenizers = [], []
    for encoder_name, tokenizer_name in zip(ENCODERS, TOKENIZERS, strict=True):
        encoder = getattr(pipe, encoder_name, None)
        tokenizer = getattr(pipe, tokenizer_name, None)
        if isinstance(encoder, nn.Module) and tokenizer is not None:
            weight = encoder.get_input_embeddings().weight  # type: ignore[operator]
            modules = [m for m in encoder.modules() if getattr(m, "weight", None) is weight]
            tables.append([m for m in modules if isinstance(m, nn.Embedding)])
            tokenizers.append(tokenizer)
    return tables, tokenizers


def word_tokens(tokenizer: Any, word: str) -> WordTokens | None:
    """A word's tokens; None if they depend on where it stands, or one of them is unknown."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    preceding, once, first = ids(PRECEDING_WORD), ids(f"{PRECEDING_WORD} {word}"), ids(word)
    within = once[len(preceding) :]
    if once[: len(preceding)] != preceding or not within:
        return None
    if ids(f"{PRECEDING_WORD} {word} {word}") != preceding + within + within:
        return None
    if within == [getattr(tokenizer, "unk_token_id", None)]:
        return None
    if first and within[-len(first) :] == first:
        return WordTokens(first, first)  # a space is a token of its own, or none
    return WordTokens(within, first) if len(first) == len(within) else None


def single_tokens(pipe: Any, words: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The words that are one token, the same everywhere, in every tokenizer; each with its ids."""
    _, tokenizers = text_encoders(pipe)
    single = []
    for word in words:
        tokens = [word_tokens(tokenizer, word) for tokenizer in tokenizers]
        ids = tuple(t.within[0] for t in tokens if t is not None and len(t.within) == 1)
        if len(ids) == len(tokenizers):
            single.append((word, ids))
    return single


def vocabulary(pipe: Any) -> list[str]:
    """Whole words of at least 3 letters in the pipe's first tokenizer; empty without one."""
    tokenizer = getattr(pipe, "tokenizer", None)
    matches = map(WHOLE_WORD.fullmatch, tokenizer.get_vocab()) if tokenizer is not None else ()
    return sorted({(match[1] or match[2]).lower() for match in matches if match})
