"""Pages from templates, and text that others wrote, made safe for them.

Whatever a template prints is cleaned and then escaped for its kind of page: a name in a recipe
cannot add a heading, a link, a tag or a table's cell. Only `Markup` is printed as it is.
"""

import hashlib
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PACKAGE = Path(__file__).parents[1]
LONGEST, LONGEST_SLUG = 100, 40  # characters of a name or prompt that are shown
JOINER = "\u200d"  # of emoji
BREAKS = ("Cc", "Zl", "Zp")
HIDDEN = ("Cf", "Cs", "Co", "Cn")
MARKS = re.compile(
    r"^[>=]|^[-+](?!\d)|[\\`*\[\]#|<~$@&]|:(?=//)|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE
)
"""What Markdown reads as a block's start, or inside a line as markup, HTML or a link's address."""


def render(template: str, **values: Any) -> str:
    """The page that a template of the package makes of these values.

    Its ending, `.md` or `.html`, decides the escaping, and `| short` in it cuts a text.
    """
    return environment(Path(template).suffix).get_template(template).render(values)


@cache
def environment(suffix: str) -> Environment:
    """The templates of one kind of page, ".md" or ".html"."""

    def finalize(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        # HTML is escaped by Jinja itself.
        return Markup(escaped(value, None)) if suffix == ".md" else cleaned(value, None)

    templates = Environment(
        autoescape=True,
        finalize=finalize,
        keep_trailing_newline=True,
        loader=FileSystemLoader(PACKAGE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters["short"] = cleaned
    return templates


def cleaned(value: Any, longest: int | None = LONGEST) -> str:
    """The text of a value as one line that can be read, cut to a number of characters.

    It has no control characters, and none that are hidden or turn the text round.
    """
    categories = [(character, unicodedata.category(character)) for character in str(value)]
    shown = (
        " " if category in BREAKS else character
        for character, category in categories
        if category not in HIDDEN or character == JOINER
    )
    text = " ".join("".join(shown).split())
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def escaped(value: Any, longest: int | None = LONGEST) -> str:
    """The text for a line of Markdown or a cell of a table, with no markup, HTML or link."""
    return MARKS.sub(lambda match: f"\\{match.group()}", cleaned(value, longest))


def slug(name: str) -> str:
    """A name as part of a tag: "Mickey Mouse" is "mickey-mouse"; a long one ends in a hash."""
    text = unicodedata.normalize("NFKC", cleaned(name, None)).casefold()
    words = re.sub(r"[\W_]+", "-", text).strip("-")
    if words and len(words) <= LONGEST_SLUG:
        return words
    # With a hash, names that are cut, or have neither letters nor digits, keep tags of their own.
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{words[: LONGEST_SLUG - 9].strip('-')}-{digest}".strip("-")
