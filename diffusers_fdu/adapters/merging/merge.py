"""Several adapters as one standard LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...utils.io import as_json, writable_folder, write_json
from ...utils.version import VERSION
from .. import lora as adapters
from ..adapter_file import Format, Layer, layers_config
from ..download import Source
from ..recipe import RECIPE_NAME
from ..write import write_adapter
from .parts import Part, inner, read_parts, total, truncated

Method = Literal["concat", "svd"]


@dataclass(frozen=True)
class Merged:
    """One adapter that stands for several, as `merge` makes it.

    Args:
        state: its weights, by PEFT's names in the denoiser: "….lora_A.weight" (rank, in, ...) and
            "….lora_B.weight" (out, rank, ...).
        config: PEFT's r, lora_alpha, target_modules, rank_pattern and alpha_pattern.
        component: the denoiser that it is for.
        format: format of the files that it came from, and is saved in.
        recipe: the recipes of the parts, and how they were merged.
        errors: |merged - sum|_F / |sum|_F of every layer, where the sum is that of the adapters at
            their weights, before any refinement.

    Example:
        >>> merged = merge(["forget-dog", "forget-pizza"])
        >>> merged.rank, merged.error < 1e-4
        (8, True)
        >>> merged.save("forget-both").name
        'forget-both'
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    component: str
    format: Format
    recipe: dict[str, Any]
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """|merged - sum|_F / |sum|_F over all layers."""
        return self.recipe["error"]

    @property
    def rank(self) -> int:
        """The largest of the layers' ranks."""
        return self.config["r"]

    def save(self, directory: str | Path) -> Path:
        """Write it as `FDUnlearner.save` writes an adapter, and return the folder.

        Raises:
            ValueError: if the directory cannot be written.
        """
        folder = writable_folder(directory)
        write_adapter(folder, self.format, self.component, self.state, self.config)
        write_json(folder / RECIPE_NAME, self.recipe)
        return folder


def merge(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "concat",
    rank: int | None = None,
) -> Merged:
    """Make one standard LoRA of several, so that they cost one at inference.

    Args:
        sources: folders of adapters of one model, or their names on the Hub, `user/name`; ranks
            and layers may differ.
        weights: one strength for each adapter; by default 1.
        method: "concat" gives their sum, as exactly as the files' dtype holds it; the ranks add
            up. "svd" gives the matrix of `rank` that is nearest to the sum (Eckart and Young).
        rank: rank of the result with "svd"; by default the sum of the ranks.

    Raises:
        TypeError: if the sources are no list.
        ValueError: for adapters that are not to be trusted or for different models, or a bad
            argument.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> merge(["forget-dog", "forget-pizza"], [1.0, 0.5], method="svd", rank=6).rank
        6
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}: choose {', '.join(get_args(Method))}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
    if method == "concat" and rank is not None:
        raise ValueError("with concat the ranks add up: pass a rank with method='svd' alone")
    parts = read_parts(sources, weights)
    if len({part.file.format for part in parts}) > 1:
        raise ValueError("adapters of diffusers' and of PEFT's format: save them in one of them")
    sums = _sums(parts)
    merged = sums
    if method == "svd":
        merged = {name: truncated(x, min(rank or x.rank, x.rank)) for name, x in sums.items()}
    # The dtype that holds all of the parts'.
    dtypes = {value.dtype for part in parts for value in part.file.state.values()}
    dtype = reduce(torch.promote_types, dtypes)
    merged = {n: Layer(x.down.to(dtype), x.up.to(dtype), x.rank) for n, x in merged.items()}
    squares = {}
    for name, exact in sums.items():
        difference = total([merged[name], exact._replace(up=-exact.up)])
        squares[name] = max(0.0, inner(difference, difference)), inner(exact, exact)
    error = _relative(*(sum(values) for values in zip(*squares.values(), strict=True)))
    most = max(layer.rank for layer in merged.values())
    return Merged(
        state=_state(parts, merged),
        config=layers_config(merged, most, most),
        component=parts[0].file.component,
        format=parts[0].file.format,
        recipe=_recipe(parts, rank=most, method=method, error=error),
        errors={name: _relative(*values) for name, values in squares.items()},
    )


def _sums(parts: Sequence[Part]) -> dict[str, Layer]:
    """The sum of the updates of every layer that any of the adapters has."""
    by_layer: dict[str, list[Layer]] = {}
    for part in parts:
        for name, update in part.updates().items():
            by_layer.setdefault(name, []).append(update)
    return {name: total(updates) for name, updates in by_layer.items()}


def _relative(square: float, exact: float) -> float:
    return (square / exact) ** 0.5 if exact else 0.0


def _state(parts: Sequence[Part], updates: dict[str, Layer]) -> dict[str, Tensor]:
    """The weights, in the shapes of the adapters' own: a convolution's have more dimensions."""
    originals = {n: layer for part in reversed(parts) for n, layer in part.file.layers.items()}
    state = {}
    for name, (down, up, _) in updates.items():
        original = originals[name]
        state[f"{name}.lora_A.weight"] = down.reshape(-1, *original.down.shape[1:])
        state[f"{name}.lora_B.weight"] = up.reshape(len(up), -1, *original.up.shape[2:])
    return state


def _recipe(parts: Sequence[Part], **facts: Any) -> dict[str, Any]:
    """The recipes of the parts, and what they share."""
    recipes = [part.file.recipe or {"adapter_name": part.name} for part in parts]
    shared = {
        key: recipes[0].get(key)
        for key in ("base_model", "pipeline")
        if all(recipe.get(key) == recipes[0].get(key) for recipe in recipes)
    }
    concepts = [concept for recipe in recipes for concept in recipe.get("concepts", [])]
    names = [concept["target"] for concept in concepts] or [part.name for part in parts]
    recipe = {
        **shared,
        "adapter_name": adapters.name_for(names),
        "component": parts[0].file.component,
        "concepts": concepts,
        **facts,
        "weights": [part.strength for part in parts],
        "merged": recipes,
        "versions": {"diffusers_fdu": VERSION},
    }
    return as_json(recipe)
