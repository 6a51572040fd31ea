"""What a model card says of an adapter, in words: of its recipe, its weights, its evaluation.

Recipes come from anyone. Whatever is missing or of another kind than expected is left out, and
all text in what is returned is escaped for Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..adapters.adapter_file import AdapterFile
from ..adapters.contents import weights_path
from ..adapters.summary import METRICS, mapping
from ..adapters.summary import number as finite
from .markup import cleaned, escaped

SHOWN = 12  # names of a list
LONG = 2**64  # from here on, whole numbers are written as others are; seeds are below


def texts(value: Any) -> list[str]:
    """The texts of a list that have something to show."""
    found = value if isinstance(value, list | tuple) else []
    return [text for text in found if isinstance(text, str) and cleaned(text)]


def worded(value: Any, form: str = ".4g") -> str | None:
    """A finite number in words; None for anything else."""
    if finite(value) is None:
        return None
    return f"{value:,}" if isinstance(value, int) and abs(value) < LONG else f"{value:{form}}"


def quoted(names: Iterable[str]) -> str:
    """Names in quotation marks, the first of them and how many more there are."""
    every = list(names)
    shown = [f"“{escaped(name)}”" for name in every[:SHOWN]]
    more = len(every) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def concepts(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The concepts of a recipe that name a target."""
    found = recipe.get("concepts")
    every = [mapping(concept) for concept in found] if isinstance(found, list) else []
    return [concept for concept in every if texts([concept.get("target")])]


def concept_row(concept: Mapping[str, Any]) -> dict[str, str]:
    """What is forgotten, and what comes in its place."""
    prompts = texts(concept.get("prompts"))
    return {
        "target": quoted([concept["target"]]),
        "aliases": quoted(texts(concept.get("aliases"))) or "–",
        "kind": escaped(concept.get("kind") or "object")
        + (f", by {len(prompts)} prompts of its own" if prompts else ""),
        "anchor": _anchor(concept.get("anchor")),
    }


def _anchor(anchor: Any) -> str:
    if texts([anchor]):
        return quoted([anchor])
    scale = worded(mapping(mapping(anchor).get("NegativeGuidance")).get("scale"))
    if scale is not None:
        return f"away from the target (negative guidance, scale {scale})"
    return "what the empty prompt gives"


def objective(recipe: Mapping[str, Any]) -> list[str]:
    """How the two are compared, and what is held to stay."""
    lines = []
    config = mapping(recipe.get("config"))
    f, sigmas = texts([recipe.get("f")]), recipe.get("sigma")
    sigma = [worded(value) for value in (sigmas if isinstance(sigmas, list) else [sigmas])]
    estimator = "exact"
    if config.get("estimator") not in (None, "exact"):
        estimator = "variational: a critic that is thrown away"
    if f:
        lines.append(f"Divergence: {escaped(f[0])} ({estimator})")
    if sigma and None not in sigma:
        lines.append(f"Scale sigma: {', '.join(str(value) for value in sigma[:SHOWN])}")
    parts = recipe.get("merged")
    if isinstance(parts, list):
        names = quoted(texts([mapping(part).get("adapter_name") for part in parts]))
        lines.append(f"Merged from {len(parts)} adapters: {names or 'of unknown names'}")
    if config:
        lines.append(f"Held to stay as it was: {_retained(config)}")
    return lines


def _retained(config: Mapping[str, Any]) -> str:
    weight = config.get("retain_weight")
    if weight == 0:
        return "nothing"
    named = texts(config.get("retain"))
    if named:
        what = f"{quoted(named)}, and the single words among them in the concepts' templates"
    else:
        what = "words of the tokenizer's vocabulary, the anchor and the empty prompt"
    return what + (f"; weight {worded(weight)}" if worded(weight) else "")


def layers(found: AdapterFile) -> dict[str, str]:
    """Rank, alpha, layers and size, of the weights themselves."""
    names = list(found.modules)
    ends = sorted({".".join(name.split(".")[-2:]) for name in names})
    shown = ", ".join(f"`{end}`" for end in ends[:SHOWN]) + (", …" if ends[SHOWN:] else "")
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in found.state.values()})
    weights = sum(value.numel() for value in found.state.values())
    size = weights_path(found).stat().st_size
    return {
        "Denoiser": f"`{found.component}`",
        "Rank": _spread([found.rank(name) for name in names]),
        "Alpha": _spread([found.alpha(name) for name in names]),
        "Layers": f"{len(names)} ({shown})",
        "Weights": f"{weights:,} in {', '.join(dtypes)}, {size / 2**20:.2f} MiB",
    }


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def training(recipe: Mapping[str, Any]) -> dict[str, str]:
    """How it was trained, and what that took; only what the recipe says."""
    config = mapping(recipe.get("config"))
    rows = {
        "Steps": _steps(recipe.get("steps_done"), config),
        "Rows in a step": _rows(config),
        "Peak learning rate": worded(config.get("learning_rate")),
        "Seed": worded(config.get("seed")),
        "Recorded rows": _recorded(mapping(recipe.get("buffer"))),
        "Recorded runs": _numbers(recipe.get("pipeline_kwargs")),
        "Divergence in training": _from_to(mapping(recipe.get("divergence"))),
        "Adapters that were active": _numbers(recipe.get("active_adapters")),
        "Time": _cost(mapping(recipe.get("seconds"))),
        "Versions": ", ".join(
            f"{escaped(name)} {escaped(value)}"
            for name, value in mapping(recipe.get("versions")).items()
        ),
    }
    return {name: value for name, value in rows.items() if value}


def _steps(steps: Any, config: Mapping[str, Any]) -> str | None:
    done, most = worded(steps), worded(config.get("steps"))
    return f"{done} of at most {most}" if done and most else done


def _rows(config: Mapping[str, Any]) -> str | None:
    batch = worded(config.get("batch_size"))
    times = worded(config.get("gradient_accumulation_steps"))  # of older recipes
    if batch is None:
        return None
    return f"{batch} of each role" + (f", {times} times" if times not in (None, "1") else "")


def _recorded(buffer: Mapping[str, Any]) -> str | None:
    unlearn, retain = worded(buffer.get("unlearn")), worded(buffer.get("retain"))
    return f"{unlearn} to unlearn, {retain} to retain" if unlearn and retain else None


def _numbers(values: Any) -> str:
    """Names with their numbers, those without left out."""
    pairs = ((escaped(name), worded(value)) for name, value in mapping(values).items())
    return ", ".join(f"{name} {value}" for name, value in pairs if value)


def _from_to(values: Mapping[str, Any]) -> str | None:
    first, last = worded(values.get("first")), worded(values.get("last"))
    return f"{first} in the first step, {last} in the last" if first and last else None


def _cost(seconds: Mapping[str, Any]) -> str | None:
    recorded, trained = (worded(seconds.get(key), ".1f") for key in ("record", "train"))
    return f"{recorded} s recording, {trained} s training" if recorded and trained else None


def metric_row(name: str, metric: Mapping[str, Any]) -> dict[str, str]:
    """A number that was measured; shares are written as per cent."""
    form = _share if name in METRICS else _plain
    low, high, before = metric.get("low"), metric.get("high"), metric.get("before")
    return {
        "label": METRICS.get(name, escaped(name)),
        "value": form(metric["value"]),
        "interval": "–" if low is None or high is None else f"{form(low)} to {form(high)}",
        "before": "–" if before is None else form(before),
    }


def seeds(numbers: Sequence[int]) -> str:
    """Whole numbers in words."""
    every = sorted(set(numbers))
    if len(every) > 2 and every[-1] - every[0] + 1 == len(every):
        return f"{every[0]} to {every[-1]}"
    return ", ".join(map(str, every[:20])) + (", …" if every[20:] else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}"
