"""A recipe in words, for the command line, model cards and reports.

Recipes may come from anyone. What is missing, or of another kind than expected, is left out, and
each text is one line without control characters; pages escape it for themselves.
"""

import sys
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
    """A concept in words: the target, what comes instead, and how many prompts it has of its own.

    `kind` is "object", "style", ..., or "" if the recipe does not say.
    """

    target: str
    anchor: str
    kind: str
    aliases: tuple[str, ...]
    prompts: int

    def __str__(self) -> str:
        details = [
            self.kind,
            f"also {_join(self.aliases)}" if self.aliases else "",
            f"{self.prompts} prompts" if self.prompts else "",
        ]
        text = "; ".join(filter(None, details))
        return f"{self.target} -> {self.anchor}" + (f" ({text})" if text else "")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # JSON has integers of any size.
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """A JSON list, or an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def texts(value: Any) -> list[str]:
    """The texts of a list that have something to show, as they are."""
    return [text for text in listed(value) if isinstance(text, str) and cleaned(text)]


def text_or_empty(value: Any) -> str:
    """A text on one line; "" for anything else."""
    return cleaned(value) if isinstance(value, str) else ""


def concepts(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The concepts of a recipe that name a target, as they are."""
    fields = map(mapping, listed(recipe.get("concepts")))
    return [concept for concept in fields if text_or_empty(concept.get("target"))]


def concept_summary(concept: Mapping[str, Any]) -> ConceptSummary:
    """What is unlearned, and what comes instead."""
    anchor = concept.get("anchor")
    scale = _number_text(mapping(mapping(anchor).get("NegativeGuidance")).get("scale"))
    if anchor is None:
        instead = "what the empty prompt gives"
    elif scale is not None:
        instead = f"away from it, negative guidance {scale}"
    else:
        instead = text_or_empty(anchor) or "?"
    return ConceptSummary(
        cleaned(concept["target"]),
        instead,
        text_or_empty(concept.get("kind")),
        tuple(map(cleaned, texts(concept.get("aliases")))),
        len(texts(concept.get("prompts"))),
    )


def recipe_rows(recipe: Mapping[str, Any]) -> Rows:
    """All that a recipe says, as labels and texts."""
    base = [cleaned(recipe[key]) for key in ("pipeline", "base_model") if recipe.get(key)]
    refinement = _training_rows(mapping(recipe.get("refined")))
    rows = [
        ("for", ": ".join(base)),
        *(("unlearns", str(concept_summary(concept))) for concept in concepts(recipe)),
        ("loss", _progress(recipe.get("divergence"))),
        ("distance", _progress(recipe.get("distance"), relative=True)),
        *_training_rows(recipe),
        *(("merged", text) for text in _merged(recipe)),
        ("refined", "; ".join(f"{label} {text}" for label, text in refinement)),
        *(("beside", text) for text in _trained_beside(recipe)),
    ]
    return [(label, text) for label, text in rows if text]


def _training_rows(recipe: Mapping[str, Any]) -> Rows:
    config = mapping(recipe.get("config"))
    steps, most = _number_text(recipe.get("steps_done")), _number_text(config.get("steps"))
    buffer = mapping(recipe.get("buffer"))
    unlearn, retain = (_number_text(buffer.get(role)) for role in ("unlearn", "retain"))
    rows = {
        "divergence": text_or_empty(recipe.get("f")),
        "estimator": _option(config.get("estimator"), "Variational"),
        "robust": _option(config.get("robust"), "Robust"),
        "sigma": _join(_number_text(value) for value in listed(recipe.get("sigma"))),
        "retained": _retained(config) if config else "",
        "layers": _join(texts(config.get("target_modules"))),
        "steps": f"{steps} of at most {most}" if steps and most else steps,
        "batch": _number_text(config.get("batch_size")),
        "learning rate": _number_text(config.get("learning_rate")),
        "seed": _number_text(config.get("seed")),
        "recorded": f"{unlearn} rows to unlearn, {retain} to retain" if unlearn and retain else "",
        "runs": _named_numbers(recipe.get("pipeline_kwargs")),
        "time": _named_numbers(recipe.get("seconds"), " s"),
        "versions": _join(f"{n} {v}" for n, v in mapping(recipe.get("versions")).items()),
    }
    return [(label, text) for label, text in rows.items() if text]


def _option(value: Any, name: str) -> str:
    """An option that is a word, a switch, or an object by its fields, alone or under its name."""
    if isinstance(value, Mapping):
        fields = _named_numbers(value.get(name, value)).replace("_", " ")
        return name.lower() + (f" ({fields})" if fields else "")
    return "with the defaults" if value is True else text_or_empty(value)


def _retained(config: Mapping[str, Any]) -> str:
    if config.get("retain_weight") == 0:
        return "nothing"
    prompts = _join(f"“{cleaned(text)}”" for text in texts(config.get("retain")))
    if prompts:
        retained = f"{prompts}, and the single words among them in the concepts' templates"
    else:
        retained = "words of the tokenizer's vocabulary, the anchor and the empty prompt"
    weight = _number_text(config.get("retain_weight"))
    return retained + (f"; weight {weight}" if weight else "")


def _progress(values: Any, *, relative: bool = False) -> str:
    """The first and the last step's value, and how much of the first is left."""
    first, last = (number(mapping(values).get(end)) for end in ("first", "last"))
    if first is None or last is None:
        return ""
    left = f", {last / first:.2%} left" if relative and first > 0 else ""
    return f"{first:.4g} -> {last:.4g}{left}"


def _merged(recipe: Mapping[str, Any]) -> list[str]:
    parts = list(map(mapping, listed(recipe.get("merged"))))
    if not parts:
        return []
    error = number(recipe.get("error"))
    distance = f", {error:.2%} from their sum" if error is not None else ""
    lines = [f"{len(parts)} adapters, method {cleaned(recipe.get('method', '?'))}{distance}"]
    strengths = listed(recipe.get("weights"))
    for part, value in zip(parts, strengths + [None] * len(parts), strict=False):
        strength = _number_text(value)
        name = cleaned(part.get("adapter_name", "?"))
        details = [str(concept_summary(concept)) for concept in concepts(part)]
        if divergence := text_or_empty(part.get("f")):
            details.append(f"divergence {divergence}")
        line = f"{name} at strength {strength}" if strength else name
        lines.append(": ".join(filter(None, (line, "; ".join(details)))))
    return lines


def _trained_beside(recipe: Mapping[str, Any]) -> list[str]:
    """Adapters that were part of the frozen model: without them it was trained for another one."""
    start = recipe.get("start")
    name = mapping(start).get("adapter_name") or start
    lines = [f"went on from {cleaned(name)}"] if start and not isinstance(name, dict) else []
    for name, value in mapping(recipe.get("active_adapters")).items():
        strength = _number_text(value) or "?"
        lines.append(f"the active adapter {cleaned(name)} at strength {strength}: load it, too")
    return lines


def _number_text(value: Any) -> str | None:
    """A finite number in words; None for anything else."""
    if number(value) is None:
        return None
    return f"{value:,}" if isinstance(value, int) and abs(value) < LONG else f"{value:.4g}"


def _named_numbers(values: Any, unit: str = "") -> str:
    """Names with their numbers; a name without a number is left out."""
    pairs = ((cleaned(name), _number_text(value)) for name, value in mapping(values).items())
    return _join(f"{name} {value}{unit}" for name, value in pairs if value)


def _join(items: Iterable[str | None]) -> str:
    """The first items of a list, and how many more there are."""
    shown = [cleaned(item) for item in items if item]
    rest = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
