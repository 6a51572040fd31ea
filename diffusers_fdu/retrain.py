"""An adapter again, from the recipe that lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .adapters import snapshot, strengths
from .adversary import Robust
from .concepts import from_json
from .steps import StepRecord
from .unlearner import FDUnlearner
from .variational import Variational


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options as they are called now.

    Recipes of 0.1.0.dev0 have the rows of a micro-batch under "batch_size", how many of those a
    step had, and an option for the least memory.
    """
    found = dict(options)
    times = found.pop("gradient_accumulation_steps", None)
    if times is not None:
        found["micro_batch_size"] = found["batch_size"]
        found["batch_size"] *= times
    found.pop("low_vram", None)
    return found


def retrain(
    pipe: Any,
    facts: Mapping[str, Any],
    adapter_name: str | None = None,
    progress: bool = True,
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
            if it is of a merged adapter or one that went on from another, or if other adapters
            are active on the pipe than were then.
    """
    if "merged" in facts:
        raise ValueError("this adapter was merged: train those in the recipe's 'merged' again")
    if facts.get("start") is not None:
        raise ValueError("this adapter went on from another: train that again, and go on by hand")
    options = current_options({**facts["config"], **facts["performance"]})
    if isinstance(options["estimator"], dict):
        options["estimator"] = Variational(**options["estimator"])
    if isinstance(options.get("robust"), dict):
        options["robust"] = Robust(**options["robust"])
    weightings = [options["timestep_sampling"], options["timestep_weights"]]
    lost = [value for value in weightings if value not in ("uniform", "min_snr")]
    if facts["f"].startswith(("generator:", "conjugate:")):
        lost.append(facts["f"])
    for value in lost:
        raise ValueError(f"the recipe names {value!r}, which is not in it: train by hand")
    found = [from_json(fields) for fields in facts["concepts"]]
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
