"""Recipes and evaluations in words. They may come from anyone: nothing in them is relied on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LONGEST = 120  # characters of a text that is shown
DEEPEST = 4  # of recipes within recipes, which merging what was merged makes
METRICS = {
    "ua": "UA, unlearning accuracy: the target is not recognised in its pictures",
    "ira": "IRA, in-domain retain accuracy: in the others' pictures, their kind of thing is",
    "cra": "CRA, cross-domain retain accuracy: in the others' pictures, the other kind is",
}
"""Shares from 0 to 1; other metrics have only their name."""


def shown(value: Any, longest: int = LONGEST) -> str:
    """A value on one line of a terminal: no control characters, and not too long."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in str(value))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers of any size
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """A JSON list, or an empty one."""
    return value if isinstance(value, list) else []


def sections(recipe: Mapping[str, Any], depth: int = 0) -> dict[str, list[str]]:
    """A recipe's facts by heading; those that it lacks are left out."""
    parts = [mapping(part) for part in listed(recipe.get("merged"))]
    found = {
        "for": _base(recipe),
        "unlearns": [concept(c) for c in listed(recipe.get("concepts"))],
        "reached": _reached(recipe),
        "trained": _trained(recipe),
        "merged": _merged(recipe, parts, depth) if parts else [],
        "refined": _trained(mapping(recipe.get("refined"))),
        "beside": _beside(recipe),
    }
    return {title: rows for title, rows in found.items() if rows}


def concept(fields: Any) -> str:
    """What is unlearned, and what comes instead."""
    known = mapping(fields)
    anchor = known.get("anchor")
    instead = "what the empty prompt gives" if anchor is None else shown(anchor)
    if isinstance(anchor, dict):
        scale = number(mapping(anchor.get("NegativeGuidance")).get("scale"))
        instead = f"away from it, guidance {scale:g}" if scale is not None else "away from it"
    more = [shown(known["kind"])] if isinstance(known.get("kind"), str) else []
    aliases = [shown(alias) for alias in listed(known.get("aliases"))]
    more += [f"also {', '.join(aliases)}"] if aliases else []
    more += [f"{len(prompts)} prompts"] if (prompts := listed(known.get("prompts"))) else []
    about = f" ({'; '.join(more)})" if more else ""
    return f"{shown(known.get('target', '?'))} -> {instead}{about}"


def _base(recipe: Mapping[str, Any]) -> list[str]:
    words = [shown(recipe[key]) for key in ("pipeline", "base_model") if recipe.get(key)]
    return [": ".join(words)] if words else []


def _reached(recipe: Mapping[str, Any]) -> list[str]:
    """First and last of what was minimised, and of the distance s, on one scale for every f."""
    rows = []
    for name in ("divergence", "distance"):
        first, last = (number(mapping(recipe.get(name)).get(end)) for end in ("first", "last"))
        if first is None or last is None:
            continue
        left = f", {last / first:.2%} left" if name == "distance" and first > 0 else ""
        rows.append(f"{name} {first:.4g} -> {last:.4g}{left}")
    return rows


def _trained(recipe: Mapping[str, Any]) -> list[str]:
    config = mapping(recipe.get("config"))
    sigmas = [f"{s:.4g}" for s in map(number, listed(recipe.get("sigma"))) if s is not None]
    steps, rate = number(recipe.get("steps_done")), number(config.get("learning_rate"))
    seconds = {k: number(v) for k, v in mapping(recipe.get("seconds")).items()}
    versions = mapping(recipe.get("versions"))
    how = [
        f"f {shown(recipe['f'])}" if "f" in recipe else "",
        f"estimator {_estimator(config['estimator'])}" if "estimator" in config else "",
        "robust" if config.get("robust") else "",
        f"sigma {', '.join(sigmas)}" if sigmas else "",
    ]
    work = [
        f"{steps:g} steps" if steps is not None else "",
        f"batch {shown(config['batch_size'])}" if "batch_size" in config else "",
        f"learning rate {rate:g}" if rate is not None else "",
        f"seed {shown(config['seed'])}" if "seed" in config else "",
    ]
    times = [f"{shown(name)} {value:g} s" for name, value in seconds.items() if value is not None]
    used = [f"{shown(name)} {shown(version)}" for name, version in versions.items()]
    return [", ".join(filter(None, row)) for row in (how, work, times, used) if any(row)]


def _estimator(value: Any) -> str:
    return shown(next(iter(value), "?")) if isinstance(value, dict) else shown(value)


def _beside(recipe: Mapping[str, Any]) -> list[str]:
    """Adapters that were part of the frozen model: without them it was trained for another one."""
    start = recipe.get("start")
    name = mapping(start).get("adapter_name") or start
    rows = [f"went on from {shown(name)}"] if start and not isinstance(name, dict) else []
    return rows + [
        f"the active adapter {shown(name)} at strength {shown(strength)}: load it, too"
        for name, strength in mapping(recipe.get("active_adapters")).items()
    ]


def _merged(recipe: Mapping[str, Any], parts: list[Mapping[str, Any]], depth: int) -> list[str]:
    error = number(recipe.get("error"))
    off = f", {error:.2%} from their sum" if error is not None else ""
    rows = [f"{len(parts)} adapters, method {shown(recipe.get('method', '?'))}{off}"]
    strengths = [number(value) for value in listed(recipe.get("weights"))]
    for i, part in enumerate(parts):
        strength = strengths[i] if i < len(strengths) else None
        at = f" at strength {strength:g}" if strength is not None else ""
        rows.append(f"{shown(part.get('adapter_name', '?'))}{at}")
        if depth < DEEPEST:
            own = sections(part, depth + 1)
            own.pop("for", None)
            rows += [f"  {title:9} {row}" for title, lines in own.items() for row in lines]
    return rows


def evaluated(evaluation: Mapping[str, Any]) -> list[str]:
    """What was measured, with the bounds of what is likely."""
    rows = []
    for name, value in mapping(evaluation.get("metrics")).items():
        known = mapping(value)
        middle, low, high = (number(known.get(key)) for key in ("value", "low", "high"))
        if middle is not None:
            form = ".1%" if name in METRICS else ".3g"
            is_bounded = low is not None and high is not None
            bounds = f" [{low:{form}}, {high:{form}}]" if is_bounded else ""
            rows.append(f"{METRICS.get(name, shown(name)).split(',')[0]} {middle:{form}}{bounds}")
    if not rows:
        return []
    about = [f"protocol {shown(evaluation['protocol'])}"] if "protocol" in evaluation else []
    about += [f"{shown(evaluation['images'])} images"] if "images" in evaluation else []
    return [", ".join(rows), *([", ".join(about)] if about else [])]
