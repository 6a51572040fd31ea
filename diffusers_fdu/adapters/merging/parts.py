"""Adapters to be combined: what they have in common, and their updates layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import lora as adapters
from ..adapter_file import AdapterFile
from ..download import local_folder
from ..read import read_adapter

Source = str | Path

NOTHING = 1e-4
"""Of the first singular value's root; float16 holds no smaller share."""


class Update(NamedTuple):
    """What one adapter adds to one layer's weight: up @ down.

    Args:
        down: (rank, in), float32.
        up: (out, rank), float32, with alpha / rank and the adapter's strength.
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Part:
    """One of the adapters.

    Args:
        file: what was read.
        strength: its weight in the whole.
    """

    file: AdapterFile
    strength: float = 1.0

    @property
    def name(self) -> str:
        """As the recipe has it, else the folder's."""
        return self.file.recipe.get("adapter_name") or self.file.folder.resolve().name

    @property
    def recipe(self) -> dict[str, Any]:
        """What trained it, or its name alone."""
        return self.file.recipe or {"adapter_name": self.name}

    def updates(self) -> dict[str, Update]:
        """By layer; a convolution's kernel counts as inputs."""
        found = {}
        for module, (down, up) in self.file.modules.items():
            scale = self.strength * self.file.alpha(module) / self.file.rank(module)
            found[module] = Update(down.float().flatten(1), scale * up.float().flatten(1))
        return found


def read_parts(sources: Sequence[Source], weights: Sequence[float] | None = None) -> list[Part]:
    """Read adapters that are to be combined.

    Args:
        sources: folders, or names on the Hub.
        weights: strength of each; None: 1.

    Raises:
        TypeError: if the sources are no list.
        ValueError: see `read_adapter`; if there is not one finite weight for each; if they are
            for different denoisers, or disagree on a layer's size.
    """
    if isinstance(sources, str | Path):
        raise TypeError("pass a list of adapters")
    if not sources:
        raise ValueError("there is no adapter to combine")
    values = adapters.checked_strengths(weights, len(sources))
    files = [read_adapter(local_folder(source)) for source in sources]
    parts = [Part(file, value) for file, value in zip(files, values, strict=True)]
    _check_alike(parts)
    return parts


def _check_alike(parts: Sequence[Part]) -> None:
    first = parts[0]
    sizes: dict[str, tuple[Any, Part]] = {}
    for part in parts:
        own, other = part.file.component, first.file.component
        if own != other:
            raise ValueError(f"{first.name!r} is for the {other}, {part.name!r} for the {own}")
        pipelines = [p.file.recipe.get("pipeline") for p in (first, part)]
        if all(pipelines) and pipelines[0] != pipelines[1]:
            raise ValueError(
                f"{first.name!r} is for {pipelines[0]!r}, {part.name!r} for {pipelines[1]!r}"
            )
        for module, (down, up) in part.file.modules.items():
            size = (tuple(down.shape[1:]), up.shape[0])
            known, whose = sizes.setdefault(module, (size, part))
            if known != size:
                raise ValueError(
                    f"{whose.name!r} and {part.name!r} are for different models: {module} takes "
                    f"and gives {known} in one and {size} in the other"
                )


def by_layer(parts: Sequence[Part]) -> dict[str, list[Update]]:
    """The updates of every layer that any of the adapters has."""
    found: dict[str, list[Update]] = {}
    for part in parts:
        for name, update in part.updates().items():
            found.setdefault(name, []).append(update)
    return found


def total(updates: Sequence[Update]) -> Update:
    """Their sum, whose rank is the sum of theirs."""
    return Update(torch.cat([u.down for u in updates]), torch.cat([u.up for u in updates], 1))


def truncated(update: Update, rank: int) -> Update:
    """The update of this rank that is nearest (Eckart and Young), its factors of equal size."""
    q_up, r_up = torch.linalg.qr(update.up.double())
    q_down, r_down = torch.linalg.qr(update.down.double().T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    up, down = q_up @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ q_down.T
    return Update(down.float(), up.float())


def compact(update: Update) -> Update:
    """The same update without the directions that it reads to no effect."""
    core = truncated(update, len(update.down))
    sizes = core.up.norm(dim=0)
    kept = sizes > NOTHING * sizes.max().clamp(min=1e-30)
    return Update(core.down[kept], core.up[:, kept])


def inner(a: Update, b: Update) -> float:
    """Inner product of two updates, tr((up down)^T (up' down'))."""
    ups, downs = a.up.double().T @ b.up.double(), a.down.double() @ b.down.double().T
    return (ups * downs).sum().item()
