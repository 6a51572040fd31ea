"""The replay buffer: recorded states of the frozen denoiser, with a question and its answer.

A *state* is what the denoiser was given besides the text (x_t, t, ...), a *text* is a prompt's
conditioning, a *prediction* is what the frozen denoiser answered. A row of the buffer joins one
of each: "at this state, asked this text, predict that". Rows to unlearn belong to a concept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

import torch
from torch import Tensor

from ..pipelines.timestep_convention import TimestepConvention
from ..utils.nested import RowInputs, same, to_device, unflatten
from .rows import Entry, Moved, Part, Role, Row


@dataclass
class ReplayBuffer:
    """Rows of (state, text, prediction) on the CPU.

    Args:
        dtype: floating states and predictions are kept in this dtype; texts keep their own.
        clock: how the denoiser is told the time.
        listed: arguments that are given as lists of one entry for each row.

    Attributes:
        pairs: indices of the texts of each target's prompt and of its anchor's, recorded or not.
        kept_texts: indices of the texts of what stays, recorded or not.
        marker: what stands in the prompts of "attacked" rows, see `robust.record_attacks`.
        about: what the recording depended on.
    """

    dtype: torch.dtype = torch.float16
    clock: TimestepConvention = field(default_factory=TimestepConvention)
    listed: frozenset[str] = frozenset()
    constants: dict[str, Any] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    kept_texts: list[int] = field(default_factory=list)
    marker: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    _states: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _texts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _predictions: list[Tensor] = field(default_factory=list)
    _rows: dict[Role, list[Entry]] = field(
        default_factory=lambda: {role: [] for role in get_args(Role)}
    )
    _text_ids: dict[tuple, int] = field(default_factory=dict)
    _shapes: list[tuple] = field(default_factory=list)
    _free: list[int] = field(default_factory=list)

    def add_text(self, prompt: str, leaves: RowInputs) -> int:
        """Keep a prompt's conditioning (leaves without batch dimension); returns its index.

        One prompt may have several, padded to different lengths.
        """
        shape = tuple(
            None if key in self.listed else _shape(leaves[key]) for key in sorted(leaves)
        )
        known = self._text_ids.get((prompt, shape))
        if known is not None:
            return known
        kept = {
            key: value.detach().cpu().clone() if torch.is_tensor(value) else value
            for key, value in leaves.items()
        }
        return self._kept(prompt, shape, kept)

    def _kept(self, prompt: str, shape: tuple, leaves: RowInputs) -> int:
        if (prompt, shape) not in self._text_ids:
            for key, value in leaves.items():
                self._texts[key].append(value)
            self._text_ids[prompt, shape] = len(self._text_ids)
            self._shapes.append(shape)
        return self._text_ids[prompt, shape]

    def add_state(self, leaves: RowInputs) -> int:
        """Keep a state (leaves without batch dimension); returns its index."""
        index = 0
        for key, value in leaves.items():
            index = len(self._states[key])
            is_exact = self._is_exact(key, value)
            kept = value.detach().cpu().clone() if torch.is_tensor(value) else value
            self._states[key].append(kept if is_exact else self._stored(kept))
        return index

    def add_prediction(self, prediction: Tensor) -> int:
        """Keep a prediction of the frozen denoiser, without batch dimension."""
        if self._free:
            index = self._free.pop()
            self._predictions[index] = self._stored(prediction)
            return index
        self._predictions.append(self._stored(prediction))
        return len(self._predictions) - 1

    def add_row(
        self, role: Role, state: int, text: int, prediction: int, concept: int = 0
    ) -> None:
        """Join a state, a text and a prediction into a row to train on."""
        self._rows[role].append(Entry(state, text, prediction, concept))

    def keep_constants(self, constants: Mapping[str, Any]) -> None:
        """Keep arguments that are the same in every call.

        Raises:
            ValueError: if one is not.
        """
        for name, value in constants.items():
            if not same(value, self.constants.setdefault(name, value)):
                raise ValueError(
                    f"cannot record this pipeline: its denoiser's argument {name} changes from "
                    "call to call and does not have an entry for each prompt"
                )

    def absorb(self, other: ReplayBuffer) -> Moved:
        """Append all of another recording of the same pipe; returns where its parts are now."""
        states = max((len(values) for values in self._states.values()), default=0)
        for key, values in other._states.items():
            self._states[key] += values
        texts = {
            index: self._kept(
                prompt, shape, {key: values[index] for key, values in other._texts.items()}
            )
            for (prompt, shape), index in other._text_ids.items()
        }
        moved = Moved(states, texts, len(self._predictions))
        self._predictions += other._predictions
        for role, rows in other._rows.items():
            self._rows[role] += [moved.entry(row) for row in rows]
        self.keep_constants(other.constants)
        return moved

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values, for a file."""
        names = [f.name for f in fields(self) if f.name not in ("clock", "listed")]
        kept = {name: getattr(self, name) for name in names}
        kept["_states"], kept["_texts"] = dict(self._states), dict(self._texts)
        kept["_rows"] = {role: [tuple(row) for row in rows] for role, rows in self._rows.items()}
        return {**kept, "clock": asdict(self.clock), "listed": sorted(self.listed)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ReplayBuffer:
        """The buffer that `state` is of."""
        rows = {role: [Entry(*row) for row in found] for role, found in state["_rows"].items()}
        clock, listed = TimestepConvention(**state["clock"]), frozenset(state["listed"])
        made = cls(**{**state, "_rows": rows, "clock": clock, "listed": listed})
        made._states = defaultdict(list, state["_states"])
        made._texts = defaultdict(list, state["_texts"])
        return made

    def clear(self, role: Role) -> None:
        """Forget the rows of a role, and the predictions that no other row has."""
        rest = {e.prediction for own, rows in self._rows.items() if own != role for e in rows}
        self._free += sorted({e.prediction for e in self._rows[role]} - rest)
        self._rows[role].clear()

    def recast(self, role: Role, new: Role) -> None:
        """Give the rows of a role another one."""
        self._rows[new] += self._rows[role]
        self._rows[role] = []

    def text_of(self, prompt: str) -> int | None:
        """The first text that was made of a prompt; None: there is none."""
        return next((i for (own, _), i in self._text_ids.items() if own == prompt), None)

    def prompt(self, text: int) -> str:
        """What a text was made of."""
        return next(prompt for (prompt, _), index in self._text_ids.items() if index == text)

    @property
    def text_names(self) -> tuple[str, ...]:
        """The denoiser's arguments that depend on the text."""
        return tuple(self._texts)

    def _stored(self, value: Tensor) -> Tensor:
        value = value.detach().cpu()
        return value.to(self.dtype) if value.is_floating_point() else value.clone()

    def count(self, role: Role) -> int:
        """Number of rows of a role."""
        return len(self._rows[role])

    def entry(self, row: Row) -> Entry:
        """What a row joins; a target's row shares its prediction with its anchor's."""
        return self._rows[row[0]][row[1]]

    def entries(self, role: Role) -> list[Entry]:
        """What all rows of a role join."""
        return list(self._rows[role])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        kept = [*self._predictions]
        for lists in (self._states, self._texts):
            kept += [v for values in lists.values() for v in values if torch.is_tensor(v)]
        return sum(value.numel() * value.element_size() for value in kept)

    @property
    def timesteps(self) -> Tensor:
        """The time of every state as the scheduler has it, from noise down to 0, (S,) float64."""
        return torch.stack(
            [self.clock.to_scheduler(value) for value in self._states[self.clock.name]]
        )

    def batch(
        self, rows: Sequence[Row], device: torch.device, dtype: torch.dtype
    ) -> tuple[list[Part], Tensor]:
        """Rows as denoiser calls, one where all texts have the same shape.

        Args:
            rows: (role, index) of each row.
            device: where the tensors go.
            dtype: dtype of the denoiser, which floating inputs are given in.

        Returns:
            The calls, and the predictions (B, ...) float32 in the order of the rows.
        """
        entries = [self.entry(row) for row in rows]
        target = to_device(self.predictions(entries), device, torch.float32)
        return self.calls(entries, device, dtype), target

    def predictions(self, entries: Sequence[Entry]) -> Tensor:
        """What the frozen denoiser answered, (N, ...), as it is kept."""
        return torch.stack([self._predictions[entry.prediction] for entry in entries])

    @property
    def is_ragged(self) -> bool:
        """Whether texts differ in length, so that some cannot be asked in one call."""
        return len(set(self._shapes)) > 1

    def calls(
        self, entries: Sequence[Entry], device: torch.device, dtype: torch.dtype
    ) -> list[Part]:
        """Denoiser calls for states and texts in any combination, see `batch`."""
        groups: dict[tuple, list[int]] = {}
        for place, entry in enumerate(entries):
            groups.setdefault(self._shapes[entry.text], []).append(place)
        return [
            Part(self._call([entries[place] for place in places], device, dtype), places)
            for places in groups.values()
        ]

    def _call(
        self, entries: Sequence[Entry], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        flat = {key: to_device(value, device, None) for key, value in self.constants.items()}
        for key, values in self._states.items():
            own = [values[e.state] for e in entries]
            floating = None if self._is_exact(key, own[0]) else dtype
            flat[key] = self._joined(key, own, device, floating)
        for key, values in self._texts.items():
            flat[key] = self._joined(key, [values[e.text] for e in entries], device, dtype)
        return unflatten(flat)

    def _is_exact(self, key: str, value: Any) -> bool:
        """The time keeps its precision: bfloat16 cannot tell 999 from 996."""
        return key == self.clock.name or not torch.is_tensor(value) or value.dim() == 0

    def _joined(
        self, key: str, values: list[Any], device: torch.device, floating: torch.dtype | None
    ) -> Any:
        if key in self.listed:
            return [to_device(value, device, floating) for value in values]
        if values[0] is None:
            return None
        return to_device(torch.stack(values), device, floating)


def _shape(value: Any) -> tuple | None:
    return tuple(value.shape) if torch.is_tensor(value) else None
