"""Text that others wrote, made safe for a model card: Markdown, tags and commit messages."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

LONGEST = 100
"""Characters of a name or prompt that are shown."""
LONGEST_SLUG = 40
JOINER = "\u200d"  # of emoji
BREAKS = ("Cc", "Zl", "Zp")
HIDDEN = ("Cf", "Cs", "Co", "Cn")
MARKS = re.compile(r"[\\`*\[\]#|<>~$@&]|:(?=//)|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE)
"""What Markdown reads as markup, HTML or the address of a link, inside a line."""


def cleaned(value: Any, longest: int = LONGEST) -> str:
    """One line that can be read: no control characters, none hidden or turning text round."""
    shown = []
    for character in str(value):
        category = unicodedata.category(character)
        if category in BREAKS:
            shown.append(" ")
        elif category not in HIDDEN or character == JOINER:
            shown.append(character)
    text = " ".join("".join(shown).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def escaped(value: Any, longest: int = LONGEST) -> str:
    """For a line of Markdown or a cell of a table: nothing in it is markup, HTML or a link."""
    return MARKS.sub(lambda match: f"\\{match.group()}", cleaned(value, longest))


def slug(name: str) -> str:
    """A name as part of a tag: "Mickey Mouse" is "mickey-mouse".

    Names that are long, or have neither letters nor digits, end with a hash, so that each has a
    tag of its own.
    """
    text = unicodedata.normalize("NFKC", cleaned(name, 10_000)).casefold()
    words = re.sub(r"[\W_]+", "-", text).strip("-")
    if words and len(words) <= LONGEST_SLUG:
        return words
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{words[: LONGEST_SLUG - 9].strip('-')}-{digest}".strip("-")
