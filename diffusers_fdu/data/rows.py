"""Rows of the replay buffer: which state, text and prediction belong together."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Role = Literal["unlearn", "retain", "attacked", "hidden", "adversarial"]
"""What a row is for; the last three belong to robust training, see `training.robust`."""

Row = tuple[Role, int]
"""A role, and the index of one of its rows."""

Halves = tuple[list[Row], list[Row]]
"""A concept's rows to unlearn: those of the first half of its pictures, and of the second."""


class DenoiserCall(NamedTuple):
    """Keyword arguments of one call, and the places that its rows have in the batch."""

    inputs: dict[str, Any]
    places: list[int]


class Entry(NamedTuple):
    """Indices of what a row joins; the prediction is -1 where nobody needs it."""

    state: int
    text: int
    prediction: int
    concept: int = 0
