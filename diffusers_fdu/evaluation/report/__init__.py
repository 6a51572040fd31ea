"""The report of an evaluation: JSON, Markdown, and one page."""

from .files import (
    from_json,
    is_evaluation,
    to_json,
    write_report,
)
from .markdown import to_markdown
from .page import to_html

__all__ = ["from_json", "is_evaluation", "to_html", "to_json", "to_markdown", "write_report"]
