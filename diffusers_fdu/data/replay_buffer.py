"""The replay buffer: recorded states of the frozen denoiser, each with a question and its answer.

A *state* is what the denoiser was given besides the text (x_t, t, ...), a *text* is a prompt's
conditioning, a *prediction* is what the frozen denoiser answered. A row of the buffer joins one
of each: "at this state, asked this text, predict that". Rows to unlearn belong to a concept.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from ..pipelines.denoiser import TimestepConvention
from ..utils.nested import RowInputs, same, to_device, unflatten

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


_Lists: Any = partial(defaultdict, list)


@dataclass
class ReplayBuffer:
    """Rows of (state, text, prediction) on the CPU."""

    dtype: torch.dtype = torch.float16  # of floating states and predictions; texts keep their own
    clock: TimestepConvention = field(default_factory=TimestepConvention)
    listed: frozenset[str] = frozenset()  # arguments that are lists with one entry for each row
    constants: dict[str, Any] = field(default_factory=dict)  # arguments that never change
    pairs: list[tuple[int, int]] = field(default_factory=list)  # texts of targets and anchors
    kept_texts: list[int] = field(default_factory=list)  # texts of what stays, recorded or not
    marker: str = ""  # what stands in the prompts of "attacked" rows, see `robust.record_attacks`
    about: dict[str, Any] = field(default_factory=dict)  # what the recording depended on
    _states: dict[str, list[Any]] = field(default_factory=_Lists)
    _texts: dict[str, list[Any]] = field(default_factory=_Lists)
    _predictions: list[Tensor] = field(default_factory=list)
    _rows: dict[Role, list[Entry]] = field(default_factory=_Lists)
    _text_ids: dict[tuple, int] = field(default_factory=dict)  # by prompt and shape
    _shapes: list[tuple] = field(default_factory=list)  # of each text
    _free: list[int] = field(default_factory=list)  # predictions that no row has any more

    def add_text(self, prompt: str, leaves: RowInputs) -> int:
        """Keep a prompt's conditioning without batch dimension, once for each shape; its index."""
        tensors = {k for k, v in leaves.items() if torch.is_tensor(v) and k not in self.listed}
        shape = tuple(tuple(leaves[k].shape) if k in tensors else None for k in sorted(leaves))
        if (prompt, shape) not in self._text_ids:
            for key, value in leaves.items():
                self._texts[key].append(_copy(value))
            self._text_ids[prompt, shape] = len(self._text_ids)
            self._shapes.append(shape)
        return self._text_ids[prompt, shape]

    def add_state(self, leaves: RowInputs) -> int:
        """Keep a state, without batch dimension; returns its index."""
        for key, value in leaves.items():
            dtype = None if self._is_exact(key, value) else self.dtype
            self._states[key].append(_copy(value, dtype))
        return len(self._states[key]) - 1

    def add_prediction(self, prediction: Tensor) -> int:
        """Keep a prediction of the frozen denoiser, without batch dimension."""
        index = self._free.pop() if self._free else len(self._predictions)
        self._predictions[index : index + 1] = [_copy(prediction, self.dtype)]
        return index

    def add_row(
        self, role: Role, state: int, text: int, prediction: int, concept: int = 0
    ) -> None:
        """Join a state, a text and a prediction into a row to train on."""
        self._rows[role].append(Entry(state, text, prediction, concept))

    def keep_constants(self, constants: Mapping[str, Any]) -> None:
        """Keep arguments that are the same in every call; a ValueError if one is not."""
        for name, value in constants.items():
            if not same(value, self.constants.setdefault(name, value)):
                raise ValueError(
                    f"cannot record this pipeline: its denoiser's argument {name} changes from "
                    "call to call and does not have an entry for each prompt"
                )

    def absorb(self, other: Self) -> Callable[[Entry], Entry]:
        """Append another recording of the same pipe; returns what renumbers its entries."""
        first_state = max(map(len, self._states.values()), default=0)
        first_prediction = len(self._predictions)
        for key, values in other._states.items():
            self._states[key] += values
        text_ids = {}
        for (prompt, _), index in other._text_ids.items():
            leaves = {key: values[index] for key, values in other._texts.items()}
            text_ids[index] = self.add_text(prompt, leaves)

        def renumbered(entry: Entry) -> Entry:
            state, prediction = entry.state + first_state, entry.prediction + first_prediction
            return Entry(state, text_ids[entry.text], prediction, entry.concept)

        self._predictions += other._predictions
        for role, entries in other._rows.items():
            self._rows[role] += map(renumbered, entries)
        self.keep_constants(other.constants)
        return renumbered

    def state_dict(self) -> dict[str, Any]:
        """The buffer as tensors and plain values, for a file."""
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        state["_states"], state["_texts"] = dict(self._states), dict(self._texts)
        state["_rows"] = {role: [tuple(row) for row in rows] for role, rows in self._rows.items()}
        return {**state, "clock": asdict(self.clock), "listed": sorted(self.listed)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The buffer of a `state_dict`."""
        buffer = cls(**state)
        buffer.clock = TimestepConvention(**state["clock"])
        buffer.listed = frozenset(state["listed"])
        rows = {role: [Entry(*r) for r in rows] for role, rows in state["_rows"].items()}
        buffer._states, buffer._texts = _Lists(state["_states"]), _Lists(state["_texts"])
        buffer._rows = _Lists(rows)
        return buffer

    def clear(self, role: Role) -> None:
        """Forget the rows of a role, and the predictions that no other row has."""
        cleared = {entry.prediction for entry in self._rows.pop(role, [])}
        used = {entry.prediction for rows in self._rows.values() for entry in rows}
        self._free += sorted(cleared - used)

    def recast(self, role: Role, new: Role) -> None:
        """Give the rows of a role another one."""
        self._rows[new] += self._rows.pop(role, [])

    def text_of(self, prompt: str) -> int | None:
        """The first text that was made of a prompt, if there is one."""
        return next((i for (other, _), i in self._text_ids.items() if other == prompt), None)

    def prompt(self, text: int) -> str:
        """The prompt that a text was made of."""
        return next(prompt for (prompt, _), index in self._text_ids.items() if index == text)

    @property
    def text_names(self) -> tuple[str, ...]:
        """The denoiser's arguments that depend on the text."""
        return tuple(self._texts)

    @property
    def is_ragged(self) -> bool:
        """Whether texts differ in length, so that some cannot be asked in one call."""
        return len(set(self._shapes)) > 1

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        lists = [self._predictions, *self._states.values(), *self._texts.values()]
        return sum(v.nbytes for values in lists for v in values if torch.is_tensor(v))

    @property
    def timesteps(self) -> Tensor:
        """The time of every state as the scheduler has it, from noise down to 0, (S,) float64."""
        return torch.stack([self.clock.to_scheduler(v) for v in self._states[self.clock.name]])

    def count(self, role: Role) -> int:
        """Number of rows of a role."""
        return len(self._rows[role])

    def entry(self, row: Row) -> Entry:
        """What a row joins; a target's row shares its prediction with its anchor's."""
        return self._rows[row[0]][row[1]]

    def entries(self, role: Role) -> list[Entry]:
        """What all rows of a role join."""
        return list(self._rows[role])

    def predictions(self, entries: Sequence[Entry]) -> Tensor:
        """Predictions of the frozen denoiser, (N, ...), in the buffer's dtype."""
        return torch.stack([self._predictions[entry.prediction] for entry in entries])

    def batch(
        self, rows: Sequence[Row], device: torch.device, dtype: torch.dtype
    ) -> tuple[list[DenoiserCall], Tensor]:
        """`calls` of rows, and their predictions, (B, ...) float32, in the order of the rows."""
        entries = [self.entry(row) for row in rows]
        target = to_device(self.predictions(entries), device, torch.float32)
        return self.calls(entries, device, dtype), target

    def calls(
        self, entries: Sequence[Entry], device: torch.device, dtype: torch.dtype
    ) -> list[DenoiserCall]:
        """Denoiser calls for states and texts in any combination, one for each shape of texts."""
        places_by_shape: dict[tuple, list[int]] = defaultdict(list)
        for place, entry in enumerate(entries):
            places_by_shape[self._shapes[entry.text]].append(place)
        return [
            DenoiserCall(self._inputs([entries[place] for place in places], device, dtype), places)
            for places in places_by_shape.values()
        ]

    def _inputs(
        self, entries: Sequence[Entry], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        flat = {key: to_device(value, device, None) for key, value in self.constants.items()}
        for key, values in self._states.items():
            state_values = [values[entry.state] for entry in entries]
            floating = None if self._is_exact(key, state_values[0]) else dtype
            flat[key] = self._joined(key, state_values, device, floating)
        for key, values in self._texts.items():
            flat[key] = self._joined(key, [values[e.text] for e in entries], device, dtype)
        return unflatten(flat)

    def _is_exact(self, key: str, value: Any) -> bool:
        """The time keeps its precision: bfloat16 cannot tell 999 from 996."""
        return key == self.clock.name or not torch.is_tensor(value) or value.dim() == 0

    def _joined(
        self, key: str, values: list[Any], device: torch.device, floating: torch.dtype | None
    ) -> Any:
        if values[0] is None and key not in self.listed:
            return None
        joined = values if key in self.listed else torch.stack(values)
        return to_device(joined, device, floating)


def _copy(value: Any, floating: torch.dtype | None = None) -> Any:
    """A copy on the CPU that keeps no batch alive; floating tensors in this dtype, if given."""
    if not torch.is_tensor(value):
        return value
    copy = value.detach().cpu().clone()
    return copy.to(floating) if floating and copy.is_floating_point() else copy
