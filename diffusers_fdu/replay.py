"""The replay buffer: recorded states of the frozen denoiser, with a question and its answer.

A *state* is what the denoiser was given besides the text (x_t, t, ...), a *text* is a prompt's
conditioning, a *prediction* is what the frozen denoiser answered. A row of the buffer joins one
of each: "at this state, asked this text, predict that".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["unlearn", "retain"]
Row = tuple[Role, int]
Leaves = dict[str, Tensor]


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
    """

    dtype: torch.dtype = torch.float16
    constants: dict[str, Any] = field(default_factory=dict)
    _states: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _texts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _predictions: list[Tensor] = field(default_factory=list)
    _rows: dict[Role, list[tuple[int, int, int]]] = field(
        default_factory=lambda: {"unlearn": [], "retain": []}
    )
    _text_ids: dict[str, int] = field(default_factory=dict)

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
        self._predictions.append(self._stored(prediction))
        return len(self._predictions) - 1

    def add_row(self, role: Role, state: int, text: int, prediction: int) -> None:
        """Join a state, a text and a prediction into a row to train on."""
        self._rows[role].append((state, text, prediction))

    def _stored(self, value: Tensor) -> Tensor:
        value = value.detach().cpu()
        is_long_float = value.is_floating_point() and value.dim() > 0
        return value.to(self.dtype) if is_long_float else value.clone()

    def count(self, role: Role) -> int:
        """Number of rows of a role."""
        return len(self._rows[role])

    def text_of(self, row: Row) -> int:
        """Index of a row's text."""
        return self._rows[row[0]][row[1]][1]

    def prediction_of(self, row: Row) -> int:
        """Index of a row's prediction; a target's row shares it with its anchor's."""
        return self._rows[row[0]][row[1]][2]

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

    def batch(self, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> tuple:
        """Rows as one denoiser call.

        Args:
            rows: (role, index) of each row.
            device: where the tensors go.
            dtype: dtype of the denoiser, which floating inputs are given in.

        Returns:
            The call's keyword arguments, batched (B, ...), and the predictions (B, ...) float32.
        """
        picked = [self._rows[role][i] for role, i in rows]
        states, texts, predictions = zip(*picked, strict=True)

        def given(value: Tensor, floating: torch.dtype) -> Tensor:
            sent = _sent(value, device)
            return sent.to(floating) if value.is_floating_point() else sent

        flat: dict[str, Any] = dict(self.constants)
        for key, values in self._states.items():
            stacked = torch.stack([values[i] for i in states])
            # Timesteps keep their precision: bfloat16 cannot tell 999 from 996.
            flat[key] = _sent(stacked, device) if stacked.dim() == 1 else given(stacked, dtype)
        for key, values in self._texts.items():
            flat[key] = given(torch.stack([values[i] for i in texts]), dtype)
        target = torch.stack([self._predictions[i] for i in predictions])
        return unflatten(flat), given(target, torch.float32)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """On a device; through pinned memory, so that the copy does not wait for running kernels."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
