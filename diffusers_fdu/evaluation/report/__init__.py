"""The report of an evaluation: JSON, Markdown, and one page."""

from .files import (
    from_json,
    is_evaluation,
    to_json,
    write_report,
)
from .pages import to_html, to_markdown

__all__ = ["from_json", "is_evaluation", "to_html", "to_json", "to_markdown", "write_report"]
