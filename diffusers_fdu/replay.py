"""The replay buffer: recorded states of the frozen denoiser, with a question and its answer.

A *state* is what the denoiser was given besides the text (x_t, t, ...), a *text* is a prompt's
conditioning, a *prediction* is what the frozen denoiser answered. A row of the buffer joins one
of each: "at this state, asked this text, predict that". Rows to unlearn belong to a concept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Role = Literal["unlearn", "retain", "mined"]
Row = tuple[Role, int]
Leaves = dict[str, Tensor]


class Entry(NamedTuple):
    """What a row joins, each by its index; -1 for a prediction that is not known."""

    state: int
    text: int
    prediction: int
    concept: int = 0


def flatten(kwargs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keyword arguments as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return nested


@dataclass
class ReplayBuffer:
    """Rows of (state, text, prediction) on the CPU.

    Args:
        dtype: floating states and predictions are kept in this dtype; texts keep their own.

    Attributes:
        candidates: indices of texts that no row has yet, among which to mine.
        about: what the recording depended on.
    """

    dtype: torch.dtype = torch.float16
    constants: dict[str, Any] = field(default_factory=dict)
    candidates: list[int] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    _states: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _texts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _predictions: list[Tensor] = field(default_factory=list)
    _rows: dict[Role, list[Entry]] = field(
        default_factory=lambda: {"unlearn": [], "retain": [], "mined": []}
    )
    _text_ids: dict[str, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)

    def add_text(self, prompt: str, leaves: Leaves) -> int:
        """Keep a prompt's conditioning (leaves without batch dimension); returns its index."""
        if prompt not in self._text_ids:
            for key, value in leaves.items():
                self._texts[key].append(value.detach().cpu().clone())
            self._text_ids[prompt] = len(self._text_ids)
        return self._text_ids[prompt]

    def add_state(self, leaves: Leaves) -> int:
        """Keep a state (leaves without batch dimension); returns its index."""
        index = 0
        for key, value in leaves.items():
            index = len(self._states[key])
            self._states[key].append(self._stored(value))
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

    def clear(self, role: Role) -> None:
        """Forget the rows of a role, and the predictions that no other row has."""
        rest = {e.prediction for own, rows in self._rows.items() if own != role for e in rows}
        self._free += sorted({e.prediction for e in self._rows[role]} - rest)
        self._rows[role].clear()

    def _stored(self, value: Tensor) -> Tensor:
        value = value.detach().cpu()
        is_long_float = value.is_floating_point() and value.dim() > 0
        return value.to(self.dtype) if is_long_float else value.clone()

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
            kept += [value for values in lists.values() for value in values]
        return sum(value.numel() * value.element_size() for value in kept)

    @property
    def timesteps(self) -> Tensor:
        """The timestep of every state, (S,)."""
        return torch.stack(self._states["timestep"])

    def batch(
        self, rows: Sequence[Row], device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, Any], Tensor]:
        """Rows as one denoiser call.

        Args:
            rows: (role, index) of each row.
            device: where the tensors go.
            dtype: dtype of the denoiser, which floating inputs are given in.

        Returns:
            The call's keyword arguments, batched (B, ...), and the predictions (B, ...) float32.
        """
        entries = [self.entry(row) for row in rows]
        target = _given(self.predictions(entries), device, torch.float32)
        return self.call(entries, device, dtype), target

    def predictions(self, entries: Sequence[Entry]) -> Tensor:
        """What the frozen denoiser answered, (N, ...), as it is kept."""
        return torch.stack([self._predictions[entry.prediction] for entry in entries])

    def call(
        self, entries: Sequence[Entry], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The keyword arguments of a denoiser call for states and texts in any combination."""
        flat: dict[str, Any] = dict(self.constants)
        for key, values in self._states.items():
            stacked = torch.stack([values[entry.state] for entry in entries])
            # Timesteps keep their precision: bfloat16 cannot tell 999 from 996.
            is_short = stacked.dim() == 1
            flat[key] = _sent(stacked, device) if is_short else _given(stacked, device, dtype)
        for key, values in self._texts.items():
            stacked = torch.stack([values[entry.text] for entry in entries])
            flat[key] = _given(stacked, device, dtype)
        return unflatten(flat)


def _given(value: Tensor, device: torch.device, floating: torch.dtype) -> Tensor:
    sent = _sent(value, device)
    return sent.to(floating) if value.is_floating_point() else sent


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """On a device; through pinned memory, so that the copy does not wait for running kernels."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
