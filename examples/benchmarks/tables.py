"""Rows as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column.

    Args:
        key: of the row's field; a row without it has an empty cell.
        title: what stands above.
        form: how a number is written.
        unit: what the field is divided by.
    """

    key: str
    title: str
    form: str = ""
    unit: float = 1.0

    def cell(self, row: dict[str, Any]) -> str:
        """The row's field in words."""
        value = row.get(self.key)
        if value is None or value is False:
            return ""
        if value is True:
            return "yes"
        if isinstance(value, list | tuple):
            return "x".join(map(str, value))
        if isinstance(value, str):
            return value.replace("|", "/").replace("\n", " ")
        return format(value / self.unit if self.unit != 1.0 else value, self.form)


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[Column], labels: int = 1) -> str:
    """A table.

    Args:
        rows: those with `skipped` or `error` have the reason in place of figures.
        columns: from left to right.
        labels: how many of the first columns say what was measured.
    """
    lines = [f"| {' | '.join(column.title for column in columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [column.cell(row) for column in columns]
        for key, word in (("skipped", "not run"), ("error", "failed")):
            if key in row:
                cells[labels:] = [""] * (len(cells) - labels)
                cells[labels] = f"{word}: {Column(key, '').cell(row)}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
