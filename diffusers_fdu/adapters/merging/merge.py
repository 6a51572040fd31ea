"""Several adapters as one standard LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...utils.io import as_json
from ...utils.version import VERSION
from .. import lora as adapters
from .merged import Merged
from .parts import Part, Source, Update, by_layer, inner, read_parts, total, truncated

Method = Literal["concat", "svd"]


def merge(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "concat",
    rank: int | None = None,
) -> Merged:
    """Make one standard LoRA of several, so that they cost one at inference.

        merge(["runs/no-dog", "runs/no-blob"], method="svd", rank=8).save("runs/neither")

    Args:
        sources: folders of adapters of one model, or names on the Hub; ranks and layers may
            differ.
        weights: strength of each; None: 1.
        method: "concat": their sum, as exactly as the files' dtype holds it; the ranks add up.
            "svd": the matrix of `rank` that is nearest to the sum (Eckart and Young).
        rank: of the result, at most the sum of the ranks; None: that sum. Not of "concat".

    Raises:
        TypeError: if the sources are no list.
        ValueError: for adapters that are not to be trusted or for different models, or a bad
            argument.
    """
    _check(method, rank)
    parts = read_parts(sources, weights)
    if len({part.file.format for part in parts}) > 1:
        raise ValueError("adapters of diffusers' and of PEFT's format: save them in one of them")
    sums = {name: total(updates) for name, updates in by_layer(parts).items()}
    found = sums
    if method == "svd":
        most = rank or max(len(update.down) for update in sums.values())
        found = {n: truncated(update, min(most, len(update.down))) for n, update in sums.items()}
    dtype = _dtype(parts)
    found = {name: Update(*(half.to(dtype) for half in update)) for name, update in found.items()}
    squares = {name: _squares(found[name], whole) for name, whole in sums.items()}
    error = _error(*(sum(values) for values in zip(*squares.values(), strict=True)))
    errors = {name: _error(*values) for name, values in squares.items()}
    config, first = _config(found), parts[0].file
    state = _state(parts, found)
    about = _about(parts, rank=config["r"], method=method, error=error)
    return Merged(state, config, first.component, first.format, about, errors)


def _check(method: str, rank: int | None) -> None:
    """Refuse what no adapter could be merged with.

    Raises:
        ValueError: with what would work.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}: choose {', '.join(get_args(Method))}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
    if method == "concat" and rank is not None:
        raise ValueError("with concat the ranks add up: pass a rank with method='svd' alone")


def _squares(one: Update, whole: Update) -> tuple[float, float]:
    """|one - whole|^2 and |whole|^2, without a matrix of the layer's size."""
    difference = total([one, whole._replace(up=-whole.up)])
    return max(0.0, inner(difference, difference)), inner(whole, whole)


def _error(off: float, whole: float) -> float:
    return (off / whole) ** 0.5 if whole else 0.0


def _config(found: dict[str, Update]) -> dict[str, Any]:
    """Alpha is the rank of every layer."""
    ranks = {name: len(update.down) for name, update in found.items()}
    most = max(ranks.values())
    others = {f"^{name}$": rank for name, rank in ranks.items() if rank != most}
    return {
        "r": most,
        "lora_alpha": most,
        "target_modules": sorted(found),
        "rank_pattern": others,
        "alpha_pattern": others,
    }


def _state(parts: Sequence[Part], found: dict[str, Update]) -> dict[str, Tensor]:
    """The factors in the shapes of the adapters'."""
    state = {}
    for name, update in found.items():
        down, up = next(p.file.modules[name] for p in parts if name in p.file.modules)
        rank = len(update.down)
        halves = (
            update.down.reshape(rank, *down.shape[1:]),
            update.up.reshape(-1, rank, *up.shape[2:]),
        )
        for half, value in zip("AB", halves, strict=True):
            state[f"{name}.lora_{half}.weight"] = value
    return state


def _dtype(parts: Sequence[Part]) -> torch.dtype:
    """Of the result: the one that holds all of the parts'."""
    dtypes = {value.dtype for part in parts for value in part.file.state.values()}
    return reduce(torch.promote_types, dtypes)


def _about(parts: Sequence[Part], **facts: Any) -> dict[str, Any]:
    """The recipe: those of the parts, and what they share."""
    known = [part.recipe for part in parts]
    shared = {key: known[0].get(key) for key in ("base_model", "pipeline")}
    shared = {k: v for k, v in shared.items() if all(other.get(k) == v for other in known)}
    concepts = [concept for other in known for concept in other.get("concepts", [])]
    names = [c["target"] for c in concepts] or [part.name for part in parts]
    about = {
        **shared,
        "adapter_name": adapters.name_for(names),
        "component": parts[0].file.component,
        "concepts": concepts,
        **facts,
        "weights": [part.strength for part in parts],
        "merged": known,
        "versions": {"diffusers_fdu": VERSION},
    }
    return as_json(about)
