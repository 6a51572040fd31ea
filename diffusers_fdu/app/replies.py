"""What the page says and shows, without gradio."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .renderer import Renderer, checked

LOGGER = logging.getLogger(__name__)
SHOWN = 600  # characters of a text
# Where a label reads HTML or Markdown these are more than text, and a recipe may be a stranger's.
PLAIN = str.maketrans("<>[]", "‹›()")


def unlearns(recipe: Mapping[str, Any]) -> str:
    """What an adapter unlearns, by its recipe; empty if that says nothing."""
    concepts = recipe.get("concepts")
    found = []
    for concept in concepts if isinstance(concepts, list) else []:
        if not isinstance(concept, Mapping) or not concept.get("target"):
            continue
        anchor = concept.get("anchor")  # no text where the guidance is negative
        instead = f" → “{anchor}”" if anchor and isinstance(anchor, str) else ""
        found.append(f"“{concept['target']}”{instead}")
    if not found:
        return ""
    f = recipe.get("f")
    text = "unlearns " + ", ".join(found) + (f", f = {f}" if f else "")
    return shortened(text).translate(PLAIN)


def answers(painter: Renderer, wish: Mapping[str, Any], values: Sequence[float]) -> Iterator[Any]:
    """What pressing the button shows: (base, unlearned, message), the base as soon as it is there.

    Args:
        painter: draws.
        wish: fields of `GenerationRequest`, as the page has them.
        values: strength of each adapter.
    """
    base = None
    try:
        wanted = checked(painter.pipe, **wish)
        base = painter.draw(wanted, [0.0] * len(values))
        yield base, None, ""
        yield base, painter.draw(wanted, values), ""
    except Exception as error:  # whatever a pipeline raises, the page goes on
        if not isinstance(error, ValueError):
            LOGGER.error("the picture could not be drawn", exc_info=error)
        yield base, None, message(error)


def message(error: Exception) -> str:
    """An error as the page shows it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return f'<p role="alert">{html.escape(shortened(text))}</p>'


def shortened(text: str) -> str:
    """Text that a page has room for."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
