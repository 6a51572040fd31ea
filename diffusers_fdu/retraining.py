"""An adapter again, from the recipe that lies beside it; a merged one trained a little more."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .adapters import lora as adapters
from .adapters.merging.merge import Merged
from .adapters.read import read_adapter
from .data.concepts import concept_from_json
from .training.callbacks import StepRecord
from .training.identity import active_strengths
from .unlearner import FDUnlearner

GONE = {
    "retain_from": "vocabulary",
    "states": "trajectory",
    "timestep_sampling": "uniform",
    "timestep_weights": "uniform",
}
"""Options that recipes may name and no longer exist, with the value that is how it is now."""
USERS_OWN = ("generator:", "conjugate:")
"""Begin the names of functions that a recipe cannot hold."""


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options as they are called now.

    Recipes of 0.1.0.dev0 have the rows of a micro-batch under "batch_size", how many of those a
    step had, and an option for the least memory.
    """
    current = dict(options)
    times = current.pop("gradient_accumulation_steps", None)
    if times is not None:
        current["micro_batch_size"] = current["batch_size"]
        current["batch_size"] *= times
    current.pop("low_vram", None)
    for name, current_value in GONE.items():
        if (value := current.pop(name, current_value)) != current_value:
            raise ValueError(
                f"the recipe asks for {name}={value!r}, and {name} no longer exists: train it "
                "again by hand without"
            )
    return current


def retrain(
    pipe: Any, facts: Mapping[str, Any], adapter_name: str | None = None, progress: bool = True
) -> FDUnlearner:
    """Train an adapter again from its recipe; on the same machine it is the same.

    Args:
        pipe: a pipeline as the adapter was trained on.
        facts: what `recipe.json` holds.
        adapter_name: name of the new adapter; by default the recipe's.
        progress: whether to show progress bars.

    Returns:
        The unlearner, the adapter loaded and active on the pipe.

    Raises:
        ValueError: if the recipe names a function that a file cannot hold, such as a generator,
            or an option that no longer exists, if it is of a merged adapter or one that went on
            from another, or if other adapters are active on the pipe than were then.

    Example:
        >>> recipe = describe("forget-dog").recipe
        >>> retrain(pipe, recipe, progress=False).adapter_name
        'forget-dog'
    """
    if "merged" in facts:
        raise ValueError("this adapter was merged: train those in the recipe's 'merged' again")
    if facts.get("start") is not None:
        raise ValueError("this adapter went on from another: train that again, and go on by hand")
    options = current_options({**facts["config"], **facts["performance"]})
    if facts["f"].startswith(USERS_OWN):
        raise ValueError(f"the recipe names {facts['f']!r}, which is not in it: train by hand")
    concepts = [concept_from_json(fields) for fields in facts["concepts"]]
    worker = FDUnlearner(
        pipe, facts["pipeline_kwargs"], progress, component=facts["component"], **options
    )
    _check_active(worker, facts["active_adapters"], "it")

    def is_done(record: StepRecord) -> bool:
        """A callback may have ended it, which is in no recipe."""
        return record.step + 1 >= facts["steps_done"]

    name = adapter_name or facts["adapter_name"]
    worker.unlearn(concepts, f=facts["f"], adapter_name=name, callback=is_done)
    return worker


STEPS, STEPS_PER_CONCEPT = 20, 5
"""Of a refinement by default: so many for each concept, but not fewer than the first.

A batch is shared out over the concepts, so that more of them need more steps.
"""
NEEDED = ("concepts", "config", "pipeline_kwargs", "active_adapters")


def refine(pipe: Any, merged: Merged, progress: bool = True, **options: Any) -> Merged:
    """Replay the recipes of a merged adapter's parts for a few steps, all together.

    What the frozen model does for all of them is recorded once, as `unlearn` with a list of
    concepts does, and the merged weights are trained on it; the pipe is left as it is. The options
    are those of `FDUnlearner`, and f: by default the f and the pipeline_kwargs that all recipes
    share, or hellinger if they share no f.

    Raises:
        ValueError: if a part has no recipe, its f is in no file, the runs' arguments differ, or
            the pipe carries other active adapters than the parts were trained beside.
    """
    recipes: Sequence[Mapping[str, Any]] = merged.recipe["merged"]
    for part in recipes:
        if any(name not in part for name in NEEDED):
            raise ValueError(
                f"{part.get('adapter_name')!r} has no recipe of its training to replay: merge it "
                "without refining"
            )
    concepts = [concept_from_json(fields) for part in recipes for fields in part["concepts"]]
    f = options.pop("f", _shared(recipes, "f") or "hellinger")
    if isinstance(f, str) and f.startswith(USERS_OWN):
        raise ValueError(f"the recipes' {f!r} is not in them: pass f=")
    kwargs = options.pop("pipeline_kwargs", _shared(recipes, "pipeline_kwargs"))
    if kwargs is None:
        raise ValueError("the recipes' runs had different pipeline_kwargs: pass some")
    steps = max(STEPS, STEPS_PER_CONCEPT * len(concepts))
    options = {"steps": steps, "early_stop": 0.0, **options}
    worker = FDUnlearner(pipe, kwargs, progress, component=merged.component, **options)
    for part in recipes:
        _check_active(worker, part["active_adapters"], repr(part["adapter_name"]))
    state_before = adapters.snapshot(worker.model)
    with tempfile.TemporaryDirectory() as start, tempfile.TemporaryDirectory() as end:
        merged.save(start)
        worker.unlearn(concepts, f=f, init_adapter=start)
        try:
            worker.save(end, merged.format)
        finally:
            adapters.remove(worker.model, str(worker.adapter_name), state_before)
        refined = read_adapter(end)
    names = ("f", "sigma", "steps_done", "config", "divergence", "distance", "seconds")
    facts = {name: worker.recipe[name] for name in names}
    return replace(merged, state=refined.state, recipe={**merged.recipe, "refined": facts})


def _shared(recipes: Sequence[Mapping[str, Any]], name: str) -> Any:
    """What all of them say; None if they differ."""
    values = [part.get(name) for part in recipes]
    return values[0] if all(value == values[0] for value in values) else None


def _check_active(worker: FDUnlearner, expected: Mapping[str, float], adapter: str) -> None:
    active = active_strengths(worker.model)
    if active != expected:
        raise ValueError(
            f"{adapter} was trained on a pipe with the adapters {expected}, and this one has "
            f"{active}: load and set those first"
        )
