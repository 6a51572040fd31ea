"""Pages from templates, and text that others wrote, made safe for them.

Whatever a template prints is cleaned and then escaped for its kind of page: a name in a recipe
cannot add a heading, a link, a tag or a table's cell. Only `Markup` is printed as it is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PACKAGE = Path(__file__).parents[1]
LONGEST = 100
"""Characters of a name or prompt that are shown."""
LONGEST_SLUG = 40
JOINER = "\u200d"  # of emoji
BREAKS = ("Cc", "Zl", "Zp")
HIDDEN = ("Cf", "Cs", "Co", "Cn")
MARKS = re.compile(
    r"^[>=]|^[-+](?!\d)|[\\`*\[\]#|<~$@&]|:(?=//)|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE
)
"""What Markdown reads as a block's start, or inside a line as markup, HTML or a link's address."""


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: file in the package that ends in `.md` or `.html`, which decides the escaping.
        **values: what the template prints; `| short` in it cuts a text to `LONGEST` characters.
    """
    return environment(Path(template).suffix).get_template(template).render(values)


@cache
def environment(suffix: str) -> Environment:
    """The templates of a kind of page: ".md" or ".html"."""
    escape = {".md": escaped, ".html": cleaned}[suffix]

    def finalize(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        text = escape(value, None)
        return Markup(text) if suffix == ".md" else text  # HTML is escaped by Jinja itself

    found = Environment(
        autoescape=True,
        finalize=finalize,
        keep_trailing_newline=True,
        loader=FileSystemLoader(PACKAGE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters["short"] = cleaned
    return found


def cleaned(value: Any, longest: int | None = LONGEST) -> str:
    """One line that can be read: no control characters, none hidden or turning text round.

    Args:
        value: any; what is no text is shown as `str` does.
        longest: characters from which on the text is cut; None: it is not.
    """
    shown = []
    for character in str(value):
        category = unicodedata.category(character)
        if category in BREAKS:
            shown.append(" ")
        elif category not in HIDDEN or character == JOINER:
            shown.append(character)
    text = " ".join("".join(shown).split())
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def escaped(value: Any, longest: int | None = LONGEST) -> str:
    """For a line of Markdown or a cell of a table: nothing in it is markup, HTML or a link."""
    return MARKS.sub(lambda match: f"\\{match.group()}", cleaned(value, longest))


def slug(name: str) -> str:
    """A name as part of a tag: "Mickey Mouse" is "mickey-mouse".

    Names that are long, or have neither letters nor digits, end with a hash, so that each has a
    tag of its own.
    """
    text = unicodedata.normalize("NFKC", cleaned(name, None)).casefold()
    words = re.sub(r"[\W_]+", "-", text).strip("-")
    if words and len(words) <= LONGEST_SLUG:
        return words
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{words[: LONGEST_SLUG - 9].strip('-')}-{digest}".strip("-")
