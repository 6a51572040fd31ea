"""Several adapters as one standard LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any, get_args

import torch
from torch import Tensor

from ...utils.io import as_json
from ...utils.version import VERSION
from .. import lora as adapters
from .merged import Merged
from .methods import (
    Method,
    by_layer,
    inner,
    merged,
    truncated,
)
from .parts import (
    Part,
    Source,
    Update,
    read_parts,
)

TORN = 0.9
"""Error beyond which a merge is warned of; 1 is as far from the sum as nothing at all."""


def merge(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    *,
    method: Method = "concat",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Merged:
    """Make one standard LoRA of several, so that they cost one at inference.

        merge(["runs/no-dog", "runs/no-blob"], method="svd", rank=8).save("runs/neither")

    Args:
        sources: folders of adapters of one model, or names on the Hub; ranks and layers may
            differ.
        weights: strength of each; None: 1.
        method: "concat": their sum, as exactly as the files' dtype holds it; the ranks add up.
            "svd": the matrix of `rank` that is nearest to the sum. "ties": of each adapter the
            largest entries; where they disagree in sign, the mean of those on the heavier side
            (Yadav et al., arXiv 2306.01708). "dare": of each adapter random entries, made larger
            for those left out (Yu et al., arXiv 2311.03099). "ortho": on the inputs that an
            adapter reads, what that adapter does there (see `methods.ortho`).
        rank: of the result, at most the sum of the ranks; None: that sum. Not of "concat".
        density: share of the entries that "ties" and "dare" leave.
        seed: of the entries that "dare" leaves.

    Raises:
        TypeError: if the sources are no list.
        ValueError: for adapters that are not to be trusted or for different models, or a bad
            argument.
    """
    _check(method, rank, density)
    parts = read_parts(sources, weights)
    if len({part.file.format for part in parts}) > 1:
        raise ValueError("adapters of diffusers' and of PEFT's format: save them in one of them")
    sums = {name: _sum(updates) for name, updates in by_layer(parts).items()}
    most = max(len(total.down) for total in sums.values())
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # dare draws what it leaves
        found = merged(parts, method, rank or most, density)
    if method != "concat":
        found = {
            name: truncated(update, min(rank or most, len(sums[name].down)))
            for name, update in found.items()
        }
    dtype = _dtype(parts)
    found = {name: Update(*(half.to(dtype) for half in found[name])) for name in sums}
    squares = {name: _squares(found[name], total) for name, total in sums.items()}
    facts: dict[str, Any] = {
        "method": method,
        **({"density": density} if method in ("ties", "dare") else {}),
        **({"seed": seed} if method == "dare" else {}),
        "error": _error(*(sum(values) for values in zip(*squares.values(), strict=True))),
    }
    errors = {name: _error(*values) for name, values in squares.items()}
    config, first = _config(found), parts[0].file
    state = _state(parts, found)
    about = _about(parts, rank=config["r"], **facts)
    whole = Merged(state, config, first.component, first.format, about, errors)
    if whole.error > TORN:
        warnings.warn(
            f"the merged update is {whole.error:.0%} of its size away from the adapters' sum: "
            f"{method!r} does not suit them, try svd and refine",
            RuntimeWarning,
            stacklevel=2,
        )
    return whole


def _check(method: str, rank: int | None, density: float) -> None:
    """Refuse what no adapter could be merged with.

    Raises:
        ValueError: with what would work.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}: choose {', '.join(get_args(Method))}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
    if method == "concat" and rank is not None:
        raise ValueError("with concat the ranks add up: choose another method to pass a rank")


def _sum(updates: Sequence[Update]) -> Update:
    return Update(torch.cat([u.down for u in updates]), torch.cat([u.up for u in updates], 1))


def _squares(one: Update, total: Update) -> tuple[float, float]:
    """|one - total|^2 and |total|^2, without a matrix of the layer's size."""
    difference = _sum([one, total._replace(up=-total.up)])
    return max(0.0, inner(difference, difference)), inner(total, total)


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
