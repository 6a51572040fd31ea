"""A recipe in words, for the command line, model cards and reports.

Recipes may come from anyone. What is missing, or of another kind than expected, is left out, and
each text is one line without control characters; pages escape it for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.markup import cleaned

Rows = list[tuple[str, str]]
"""Labels and texts, in order; several rows may have the same label."""
SHOWN = 12  # items of a list
LONG = 2**64  # from here on, whole numbers are written as others are; seeds are below


@dataclass(frozen=True)
class ConceptSummary:
    """A concept in words.

    Args:
        target: what is unlearned.
        anchor: what comes instead.
        kind: "object", "style", ...; "" if it is not known.
        aliases: other names of the target.
        prompts: number of prompts of its own.
    """

    target: str
    anchor: str
    kind: str
    aliases: tuple[str, ...]
    prompts: int

    def __str__(self) -> str:
        about = [
            self.kind,
            f"also {_some(self.aliases)}" if self.aliases else "",
            f"{self.prompts} prompts" if self.prompts else "",
        ]
        more = "; ".join(filter(None, about))
        return f"{self.target} -> {self.anchor}" + (f" ({more})" if more else "")


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
    return list(value) if isinstance(value, list | tuple) else []


def texts(value: Any) -> list[str]:
    """The texts of a list that have something to show, as they are."""
    return [text for text in listed(value) if isinstance(text, str) and cleaned(text)]


def concepts(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The concepts of a recipe that name a target, as they are."""
    found = map(mapping, listed(recipe.get("concepts")))
    return [concept for concept in found if texts([concept.get("target")])]


def concept_summary(concept: Mapping[str, Any]) -> ConceptSummary:
    """What is unlearned, and what comes instead."""
    anchor = concept.get("anchor")
    scale = _worded(mapping(mapping(anchor).get("NegativeGuidance")).get("scale"))
    if anchor is None:
        instead = "what the empty prompt gives"
    elif scale is not None:
        instead = f"away from it, negative guidance {scale}"
    else:
        instead = cleaned(anchor) if texts([anchor]) else "?"
    return ConceptSummary(
        cleaned(concept["target"]),
        instead,
        "".join(map(cleaned, texts([concept.get("kind")]))),
        tuple(map(cleaned, texts(concept.get("aliases")))),
        len(texts(concept.get("prompts"))),
    )


def rows(recipe: Mapping[str, Any]) -> Rows:
    """All that is told of a recipe."""
    base = [cleaned(recipe[key]) for key in ("pipeline", "base_model") if recipe.get(key)]
    told = [
        ("for", ": ".join(base)),
        *(("unlearns", str(concept_summary(concept))) for concept in concepts(recipe)),
        ("loss", _progress(recipe.get("divergence"))),
        ("distance", _progress(recipe.get("distance"), relative=True)),
        *_training(recipe),
        *_merged(recipe),
        ("refined", _joined(_training(mapping(recipe.get("refined"))))),
        *_beside(recipe),
    ]
    return [(label, text) for label, text in told if text]


def _training(recipe: Mapping[str, Any]) -> Rows:
    config = mapping(recipe.get("config"))
    steps, most = _worded(recipe.get("steps_done")), _worded(config.get("steps"))
    buffer = mapping(recipe.get("buffer"))
    unlearn, retain = _worded(buffer.get("unlearn")), _worded(buffer.get("retain"))
    versions = mapping(recipe.get("versions")).items()
    told = {
        "divergence": _some(texts([recipe.get("f")])),
        "estimator": _option(config.get("estimator"), "Variational"),
        "robust": _option(config.get("robust"), "Robust"),
        "sigma": _some(_worded(value) for value in listed(recipe.get("sigma"))),
        "retained": _retained(config) if config else "",
        "layers": _some(texts(config.get("target_modules"))),
        "steps": f"{steps} of at most {most}" if steps and most else steps,
        "batch": _worded(config.get("batch_size")),
        "learning rate": _worded(config.get("learning_rate")),
        "seed": _worded(config.get("seed")),
        "recorded": f"{unlearn} rows to unlearn, {retain} to retain" if unlearn and retain else "",
        "runs": _numbers(recipe.get("pipeline_kwargs")),
        "time": _numbers(recipe.get("seconds"), " s"),
        "versions": _some(f"{cleaned(name)} {cleaned(version)}" for name, version in versions),
    }
    return [(label, text) for label, text in told.items() if text]


def _option(value: Any, name: str) -> str:
    """An option that is a word, a switch, or an object by its fields, alone or under its name."""
    if isinstance(value, Mapping):
        fields = _numbers(value.get(name, value)).replace("_", " ")
        return name.lower() + (f" ({fields})" if fields else "")
    if isinstance(value, bool):
        return "with the defaults" if value else ""
    return "".join(map(cleaned, texts([value])))


def _retained(config: Mapping[str, Any]) -> str:
    if config.get("retain_weight") == 0:
        return "nothing"
    named = _some(f"“{cleaned(text)}”" for text in texts(config.get("retain")))
    if named:
        what = f"{named}, and the single words among them in the concepts' templates"
    else:
        what = "words of the tokenizer's vocabulary, the anchor and the empty prompt"
    weight = _worded(config.get("retain_weight"))
    return what + (f"; weight {weight}" if weight else "")


def _progress(values: Any, *, relative: bool = False) -> str:
    """The first and the last step's value, and how much of the first is left."""
    first, last = (number(mapping(values).get(end)) for end in ("first", "last"))
    if first is None or last is None:
        return ""
    left = f", {last / first:.2%} left" if relative and first > 0 else ""
    return f"{first:.4g} -> {last:.4g}{left}"


def _merged(recipe: Mapping[str, Any]) -> Rows:
    parts = list(map(mapping, listed(recipe.get("merged"))))
    if not parts:
        return []
    error = number(recipe.get("error"))
    off = f", {error:.2%} from their sum" if error is not None else ""
    told = [f"{len(parts)} adapters, method {cleaned(recipe.get('method', '?'))}{off}"]
    strengths = listed(recipe.get("weights"))
    for part, strength in zip(parts, strengths + [None] * len(parts), strict=False):
        weight = _worded(strength)
        at = f" at strength {weight}" if weight else ""
        about = [str(concept_summary(concept)) for concept in concepts(part)]
        about += [f"divergence {cleaned(f)}" for f in texts([part.get("f")])]
        named = f"{cleaned(part.get('adapter_name', '?'))}{at}"
        told.append(": ".join(filter(None, (named, "; ".join(about)))))
    return [("merged", text) for text in told]


def _beside(recipe: Mapping[str, Any]) -> Rows:
    """Adapters that were part of the frozen model: without them it was trained for another one."""
    start = recipe.get("start")
    name = mapping(start).get("adapter_name") or start
    told = [f"went on from {cleaned(name)}"] if start and not isinstance(name, dict) else []
    for name, strength in mapping(recipe.get("active_adapters")).items():
        at = f" at strength {_worded(strength) or '?'}"
        told.append(f"the active adapter {cleaned(name)}{at}: load it, too")
    return [("beside", text) for text in told]


def _worded(value: Any) -> str | None:
    """A finite number in words; None for anything else."""
    if number(value) is None:
        return None
    return f"{value:,}" if isinstance(value, int) and abs(value) < LONG else f"{value:.4g}"


def _numbers(values: Any, unit: str = "") -> str:
    """Names with their numbers, those without left out."""
    pairs = ((cleaned(name), _worded(value)) for name, value in mapping(values).items())
    return _some(f"{name} {value}{unit}" for name, value in pairs if value)


def _some(items: Iterable[str | None]) -> str:
    """The first of a list, and how many more there are."""
    every = [cleaned(item) for item in items if item]
    more = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _joined(told: Rows) -> str:
    return "; ".join(f"{label} {text}" for label, text in told)
