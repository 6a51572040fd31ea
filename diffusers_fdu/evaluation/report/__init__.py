"""The report of an evaluation: JSON, Markdown, and one page."""
