"""Several adapters on one pipe: load them, set their strengths, take them off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pipelines.denoiser import denoiser_names
from . import lora as adapters
from .loading import load_adapter

Source = str | Path


def stack(
    pipe: Any, sources: Sequence[Source], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Load adapters and make all of them active, beside those that were.

        stack(pipe, ["runs/no-snoopy", "runs/no-van-gogh"], [1.0, 0.8])

    Args:
        pipe: a pipeline like the one they were trained on.
        sources: see `load_unlearned`.
        weights: strength of each; None: 1.

    Returns:
        The strength of each, by the name that it has on the pipe; adapters of two denoisers may
        share one.

    Raises:
        ValueError: if there is not one finite weight for each, and see `load_unlearned`. None of
            them is on the pipe then.
    """
    if isinstance(sources, str | Path):
        raise TypeError("pass a list of sources")
    values = adapters.checked_strengths(weights, len(sources))
    before = {name: adapters.snapshot(getattr(pipe, name)) for name in denoiser_names(pipe)}
    loaded: list[tuple[str, str]] = []
    try:
        for source, value in zip(sources, values, strict=True):
            component, name = load_adapter(pipe, source, None, None)
            loaded.append((component, name))
            adapters.set_strength(getattr(pipe, component), name, value)
    except BaseException:
        for component, name in loaded:
            adapters.remove(getattr(pipe, component), name, before[component])
        raise
    return {name: value for (_, name), value in zip(loaded, values, strict=True)}


def strengths(pipe: Any, values: Mapping[str, float] | None = None) -> dict[str, float]:
    """Strength of each adapter on a pipe; 0 for those that are not active.

    Args:
        pipe: the pipeline.
        values: strengths to set; an adapter with one becomes active, the others stay as they are.

    Raises:
        ValueError: for a name that is not on the pipe, or if its adapters are fused or off.
    """
    models = [getattr(pipe, name) for name in denoiser_names(pipe)]
    for model in models if values else ():
        adapters.check_layers(model)
    known = list(dict.fromkeys(n for m in models for n in getattr(m, "peft_config", {})))
    for name in values or {}:
        if name not in known:
            raise ValueError(f"no adapter {name!r} on the pipe: there are {', '.join(known)}")
    found: dict[str, float] = {}
    for model in models:
        active = list(adapters.snapshot(model).active)
        own = getattr(model, "peft_config", {})
        wanted = {name: value for name, value in (values or {}).items() if name in own}
        if wanted:
            active += [name for name in wanted if name not in active]
            adapters.activate(model, active)
            for name, value in wanted.items():
                adapters.set_strength(model, name, value)
        shown = adapters.strengths(model, list(own))
        found |= {name: shown[name] if name in active else 0.0 for name in own}
    return found


@contextmanager
def at_strengths(pipe: Any, values: Mapping[str, float]) -> Iterator[None]:
    """Adapters active at these strengths for a while; then everything is as it was, exactly.

    Args:
        pipe: the pipeline.
        values: strengths by name.
    """
    models = [getattr(pipe, name) for name in denoiser_names(pipe)]
    flags = [adapters.snapshot(model) for model in models]
    # Layer by layer, since adapters may have another strength, or none, on some of them.
    layers: list[Any] = [layer for model in models for layer in adapters.tuner_layers(model)]
    before = [(list(x.active_adapters), dict(getattr(x, "scaling", {}))) for x in layers]
    try:
        strengths(pipe, values)
        for model in models:
            model.eval()
        yield
    finally:
        for layer, (active, scaling) in zip(layers, before, strict=True):
            layer.set_adapter(active)
            if scaling:
                layer.scaling.update(scaling)
        for model, flag in zip(models, flags, strict=True):
            adapters.restore_flags(model, flag)


def unstack(pipe: Any, names: Sequence[str] | None = None) -> None:
    """Take adapters off a pipe; it is then what it was without them, exactly.

    Args:
        pipe: the pipeline.
        names: which; None: all.

    Raises:
        ValueError: for a name that is not on the pipe, or if its adapters are fused or off.
    """
    for component in denoiser_names(pipe):
        adapters.check_layers(getattr(pipe, component))
    known = strengths(pipe)
    wanted = list(known) if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise ValueError(f"no adapter {name!r} on the pipe: there are {', '.join(known)}")
    for component in denoiser_names(pipe):
        model = getattr(pipe, component)
        for name in wanted:
            if name in getattr(model, "peft_config", {}):
                before = adapters.snapshot(model)
                rest = tuple(other for other in before.active if other != name)
                adapters.remove(model, name, replace(before, active=rest))
