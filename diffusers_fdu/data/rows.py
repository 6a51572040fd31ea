"""Rows of the replay buffer, by their indices.

A row joins a state, a text and a prediction, each by its index in the buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Role = Literal["unlearn", "retain", "attacked", "hidden", "adversarial"]


Row = tuple[Role, int]


Half = tuple[list[Row], list[Row]]
"""Rows to unlearn of the first half of a concept's pictures, and of the second."""


class Part(NamedTuple):
    """Rows that can be asked in one call: its keyword arguments, and the rows' places."""

    inputs: dict[str, Any]
    places: list[int]


class Entry(NamedTuple):
    """What a row joins, each by its index; -1 for a prediction that is not known."""

    state: int
    text: int
    prediction: int
    concept: int = 0


@dataclass(frozen=True)
class Moved:
    """Where the parts of an absorbed buffer are.

    Args:
        states: number of states before.
        texts: new index of each of its texts.
        predictions: number of predictions before.
    """

    states: int
    texts: dict[int, int]
    predictions: int

    def text(self, index: int) -> int:
        """A text's new index."""
        return self.texts[index]

    def entry(self, entry: Entry) -> Entry:
        """An entry with the new indices."""
        prediction = (
            entry.prediction if entry.prediction < 0 else entry.prediction + self.predictions
        )
        return Entry(entry.state + self.states, self.texts[entry.text], prediction, entry.concept)
