"""An adapter again, from the recipe that lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .concepts import Concept, NegativeGuidance
from .unlearner import FDUnlearner
from .variational import Variational


def retrain(pipe: Any, facts: Mapping[str, Any], progress: bool = True) -> FDUnlearner:
    """Train an adapter again from its recipe; on the same machine it is the same.

    Args:
        pipe: as the adapter was trained on.
        facts: what `recipe.json` holds.
        progress: show progress bars.

    Returns:
        The unlearner, the adapter loaded and active on the pipe.

    Raises:
        ValueError: if the recipe names a function that a file cannot hold, such as a generator.
    """
    options = {**facts["config"], **facts["performance"]}
    if isinstance(options["estimator"], dict):
        options["estimator"] = Variational(**options["estimator"])
    named = [facts["f"], options["timestep_sampling"], options["timestep_weights"]]
    for value in named:
        if value.startswith(("generator:", "<")):
            raise ValueError(f"the recipe names {value!r}, which is not in it: train by hand")
    found = []
    for fields in facts["concepts"]:
        anchor = fields["anchor"]
        if isinstance(anchor, Mapping):
            anchor = NegativeGuidance(**anchor["NegativeGuidance"])
        found.append(Concept(**{**fields, "anchor": anchor}))
    worker = FDUnlearner(pipe, facts["pipeline_kwargs"], progress, **options)
    worker.unlearn(found, f=facts["f"], adapter_name=facts["adapter_name"])
    return worker
