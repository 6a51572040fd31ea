"""Adapters to be combined: what they have in common, and their updates layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import lora as adapters
from ..adapter_file import AdapterFile, Layer
from ..download import Source, local_folder
from ..read import read_adapter

NOTHING = 1e-4  # of the first singular value's root; float16 holds no smaller share


@dataclass(frozen=True)
class Part:
    """An adapter that is to be combined with others, by its name, and its strength."""

    name: str
    file: AdapterFile
    strength: float

    def updates(self) -> dict[str, Layer]:
        """The updates up @ down by layer, in float32; a convolution's kernel counts as inputs.

        The adapter's strength and the scale alpha / rank are in `up`, and alpha is the rank.
        """
        updates = {}
        for name, layer in self.file.layers.items():
            scale = self.strength * layer.alpha / layer.rank
            down, up = (half.float().flatten(1) for half in layer[:2])
            updates[name] = Layer(down, scale * up, layer.rank)
        return updates


def read_parts(sources: Sequence[Source], weights: Sequence[float] | None = None) -> list[Part]:
    """Read adapters that are to be combined, at these strengths or at 1."""
    strengths = adapters.checked_strengths(sources, weights)
    if not sources:
        raise ValueError("there is no adapter to combine")
    parts = []
    for source, strength in zip(sources, strengths, strict=True):
        file = read_adapter(local_folder(source))
        name = file.recipe.get("adapter_name") or file.folder.resolve().name
        parts.append(Part(name, file, strength))
    _check_alike(parts)
    return parts


def _check_alike(parts: Sequence[Part]) -> None:
    """Refuse parts of different denoisers or pipelines, or with layers of different sizes."""
    models: dict[str, tuple[Any, str]] = {}
    for part in parts:
        facts: dict[str, Any] = {
            name: (tuple(down.shape[1:]), up.shape[0])
            for name, (down, up, _) in part.file.layers.items()
        }
        facts["the denoiser"] = part.file.component
        if pipeline := part.file.recipe.get("pipeline"):
            facts["the pipeline"] = pipeline
        for what, value in facts.items():
            other_value, other_name = models.setdefault(what, (value, part.name))
            if value != other_value:
                raise ValueError(
                    f"{other_name!r} and {part.name!r} are for different models: {what} is "
                    f"{other_value!r} of one and {value!r} of the other"
                )


def total(updates: Sequence[Layer]) -> Layer:
    """The sum of updates, whose rank is the sum of theirs."""
    down, up = torch.cat([u.down for u in updates]), torch.cat([u.up for u in updates], 1)
    return Layer(down, up, len(down))


def truncated(update: Layer, rank: int) -> Layer:
    """The update of this rank that is nearest (Eckart and Young), its factors of equal size."""
    # up down = Q_u (R_u R_d^T) Q_d^T, so that the decomposition is of a matrix (rank, rank).
    q_up, r_up = torch.linalg.qr(update.up.double())
    q_down, r_down = torch.linalg.qr(update.down.double().T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    up, down = q_up @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ q_down.T
    return Layer(down.float(), up.float(), len(down))


def compact(update: Layer) -> Layer:
    """The same update without the directions that it reads to no effect."""
    core = truncated(update, update.rank)
    sizes = core.up.norm(dim=0)
    used = sizes > NOTHING * sizes.max().clamp(min=1e-30)
    return Layer(core.down[used], core.up[:, used], int(used.sum()))


def inner(a: Layer, b: Layer) -> float:
    """Inner product of two updates, tr((up down)^T (up' down'))."""
    ups, downs = a.up.double().T @ b.up.double(), a.down.double() @ b.down.double().T
    return (ups * downs).sum().item()
