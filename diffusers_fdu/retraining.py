"""An adapter again, from the recipe that lies beside it; a merged one trained a little more."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .adapters import lora as adapters
from .adapters.lora import snapshot, strengths
from .adapters.merging.merged import Merged
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


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options as they are called now.

    Recipes of 0.1.0.dev0 have the rows of a micro-batch under "batch_size", how many of those a
    step had, and an option for the least memory.

    Raises:
        ValueError: if they name an option that no longer exists, with another value than the one
            that all trainings have now.
    """
    found = dict(options)
    times = found.pop("gradient_accumulation_steps", None)
    if times is not None:
        found["micro_batch_size"] = found["batch_size"]
        found["batch_size"] *= times
    found.pop("low_vram", None)
    for name, value in GONE.items():
        if (asked := found.pop(name, value)) != value:
            raise ValueError(
                f"the recipe asks for {name}={asked!r}, and {name} no longer exists: train it "
                "again by hand without"
            )
    return found


def retrain(
    pipe: Any, facts: Mapping[str, Any], adapter_name: str | None = None, progress: bool = True
) -> FDUnlearner:
    """Train an adapter again from its recipe; on the same machine it is the same.

    Args:
        pipe: as the adapter was trained on.
        facts: what `recipe.json` holds.
        adapter_name: of the new adapter; None: the recipe's.
        progress: show progress bars.

    Returns:
        The unlearner, the adapter loaded and active on the pipe.

    Raises:
        ValueError: if the recipe names a function that a file cannot hold, such as a generator,
            or an option that no longer exists, if it is of a merged adapter or one that went on
            from another, or if other adapters are active on the pipe than were then.
    """
    if "merged" in facts:
        raise ValueError("this adapter was merged: train those in the recipe's 'merged' again")
    if facts.get("start") is not None:
        raise ValueError("this adapter went on from another: train that again, and go on by hand")
    options = current_options({**facts["config"], **facts["performance"]})
    if facts["f"].startswith(("generator:", "conjugate:")):
        raise ValueError(f"the recipe names {facts['f']!r}, which is not in it: train by hand")
    found = [concept_from_json(fields) for fields in facts["concepts"]]
    worker = FDUnlearner(
        pipe, facts["pipeline_kwargs"], progress, component=facts["component"], **options
    )
    active = strengths(worker.model, snapshot(worker.model).active)
    if active != facts["active_adapters"]:
        raise ValueError(
            f"it was trained on a pipe with the adapters {facts['active_adapters']}, and this one "
            f"has {active}: load and set those first"
        )

    def is_done(record: StepRecord) -> bool:
        """A callback may have ended it, which is in no recipe."""
        return record.step + 1 >= facts["steps_done"]

    name = adapter_name or facts["adapter_name"]
    worker.unlearn(found, f=facts["f"], adapter_name=name, callback=is_done)
    return worker


STEPS, STEPS_PER_CONCEPT = 20, 5
"""Of a refinement, if it is not told: so many for each concept, but not fewer than the first.

A batch is shared out over the concepts, so that more of them need more steps.
"""
NEEDED = ("concepts", "config", "pipeline_kwargs", "active_adapters")


def refine(pipe: Any, merged: Merged, progress: bool = True, **options: Any) -> Merged:
    """Replay the recipes of a merged adapter's parts for a few steps, all together.

    What the frozen model does for all targets, anchors and things to retain is recorded once, as
    `unlearn` with a list of concepts does, and the merged weights are trained on it.

    Args:
        pipe: as the adapters were trained on; it is left as it is.
        merged: what `merge` returned.
        progress: show progress bars.
        **options: of `FDUnlearner`, and f; if not given, `STEPS_PER_CONCEPT` steps for each
            concept, at least `STEPS`, the f and the pipeline_kwargs that all recipes share, and
            hellinger if they share no f.

    Returns:
        The refined adapter, of the same rank and layers.

    Raises:
        ValueError: if a part has no recipe, its f is in no file, the runs' arguments differ, or
            the pipe carries other active
            adapters than the parts were trained beside.
    """
    recipes: Sequence[Mapping[str, Any]] = merged.recipe["merged"]
    for part in recipes:
        if any(name not in part for name in NEEDED):
            raise ValueError(
                f"{part.get('adapter_name')!r} has no recipe of its training to replay: merge it "
                "without refining"
            )
    found = [concept_from_json(fields) for part in recipes for fields in part["concepts"]]
    f = options.pop("f", _shared(recipes, "f") or "hellinger")
    if isinstance(f, str) and f.startswith(("generator:", "conjugate:")):
        raise ValueError(f"the recipes' {f!r} is not in them: pass f=")
    kwargs = options.pop("pipeline_kwargs", _shared(recipes, "pipeline_kwargs"))
    if kwargs is None:
        raise ValueError("the recipes' runs had different pipeline_kwargs: pass some")
    steps = max(STEPS, STEPS_PER_CONCEPT * len(found))
    settings = {"steps": steps, "early_stop": 0.0, **options}
    worker = FDUnlearner(pipe, kwargs, progress, component=merged.component, **settings)
    active = active_strengths(worker.model)
    for part in recipes:
        if part["active_adapters"] != active:
            raise ValueError(
                f"{part['adapter_name']!r} was trained on a pipe with the adapters "
                f"{part['active_adapters']}, and this one has {active}: load and set those first"
            )
    before = adapters.snapshot(worker.model)
    with tempfile.TemporaryDirectory() as start, tempfile.TemporaryDirectory() as end:
        merged.save(start)
        worker.unlearn(found, f=f, init_adapter=start)
        try:
            worker.save(end, merged.format)
        finally:
            adapters.remove(worker.model, str(worker.adapter_name), before)
        refined = read_adapter(end)
    names = ("f", "sigma", "steps_done", "config", "divergence", "distance", "seconds")
    facts = {name: worker.recipe[name] for name in names}
    return replace(merged, state=refined.state, recipe={**merged.recipe, "refined": facts})


def _shared(recipes: Sequence[Mapping[str, Any]], name: str) -> Any:
    """What all of them say; None if they differ."""
    values = [part.get(name) for part in recipes]
    return values[0] if all(value == values[0] for value in values) else None
