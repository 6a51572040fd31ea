"""Several adapters on one pipe: load them, set their strengths, take them off."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..pipelines.denoiser import denoiser_names
from . import lora as adapters
from .download import Source
from .loading import load_adapter


def _denoisers(pipe: Any, names: Iterable[str] = ()) -> list[tuple[nn.Module, list[str]]]:
    """The denoisers of a pipe and the adapters on them; all that are named must be there."""
    models = [getattr(pipe, component) for component in denoiser_names(pipe)]
    result = [(model, list(getattr(model, "peft_config", {}))) for model in models]
    on_pipe = list(dict.fromkeys(name for _, on_model in result for name in on_model))
    for name in names:
        if name not in on_pipe:
            raise ValueError(f"no adapter {name!r} on the pipe: there are {', '.join(on_pipe)}")
    return result


def stack(
    pipe: Any, sources: Sequence[Source], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Load adapters and make all of them active, beside those that were.

    Args:
        pipe: a pipeline like the one that they were trained on.
        sources: folders of adapters, or their names on the Hub, `user/name`.
        weights: one strength for each adapter; by default 1.

    Returns:
        The strength of each, by the name that it has on the pipe; adapters of two denoisers may
        share one.

    Raises:
        TypeError: if the sources are no list.
        ValueError: if there is not one finite weight for each, or `load_unlearned` refuses one of
            them. None is on the pipe then.

    Example:
        >>> stack(pipe, ["forget-dog", "forget-pizza"], [1.0, 0.8])
        {'forget-dog': 1.0, 'forget-pizza': 0.8}
    """
    values = adapters.checked_strengths(sources, weights)
    loaded: list[tuple[str, str]] = []
    try:
        for source, value in zip(sources, values, strict=True):
            component, name = load_adapter(pipe, source)
            loaded.append((component, name))
            adapters.set_strength(getattr(pipe, component), name, value)
    except BaseException:
        for component, name in loaded:
            adapters.remove(getattr(pipe, component), name)
        raise
    return {name: value for (_, name), value in zip(loaded, values, strict=True)}


def strengths(pipe: Any, values: Mapping[str, float] | None = None) -> dict[str, float]:
    """Strength of each adapter on a pipe, once some of them are set; 0 if it is not active.

    Args:
        pipe: a pipeline with adapters.
        values: strengths to set, by adapter name. An adapter that is named becomes active, the
            others stay as they are.

    Raises:
        ValueError: for a name that is not on the pipe, or if its adapters are fused or off.

    Example:
        >>> pipe = load_unlearned(pipe, "forget-dog")
        >>> strengths(pipe, {"forget-dog": 0.5})
        {'forget-dog': 0.5}
    """
    values = values or {}
    models = _denoisers(pipe, values)
    for model, _ in models if values else ():
        adapters.check_layers(model)
    result: dict[str, float] = {}
    for model, names in models:
        active = list(adapters.snapshot(model).active)
        changed = [name for name in values if name in names]
        if changed:
            active += [name for name in changed if name not in active]
            adapters.activate(model, active)
            for name in changed:
                adapters.set_strength(model, name, values[name])
        weights = adapters.strengths(model, names)
        result |= {name: weights[name] if name in active else 0.0 for name in names}
    return result


@contextmanager
def at_strengths(pipe: Any, values: Mapping[str, float]) -> Iterator[None]:
    """Adapters active at these strengths for a while; then everything is as it was, exactly."""
    models = [model for model, _ in _denoisers(pipe)]
    states_before = [adapters.snapshot(model) for model in models]
    # Layer by layer, since adapters may have another strength, or none, on some of them.
    layers: list[Any] = [layer for model in models for layer in adapters.tuner_layers(model)]
    layers_before = [(list(x.active_adapters), dict(getattr(x, "scaling", {}))) for x in layers]
    try:
        strengths(pipe, values)
        for model in models:
            model.eval()
        yield
    finally:
        for layer, (active, scaling) in zip(layers, layers_before, strict=True):
            layer.set_adapter(active)
            if scaling:
                layer.scaling.update(scaling)
        for model, state in zip(models, states_before, strict=True):
            adapters.restore_flags(model, state)


def unstack(pipe: Any, names: Sequence[str] | None = None) -> None:
    """Take adapters off a pipe; it is then what it was without them, exactly.

    Args:
        pipe: a pipeline with adapters.
        names: the adapters to take off; by default all.

    Raises:
        ValueError: for a name that is not on the pipe, or if its adapters are fused or off.

    Example:
        >>> names = stack(pipe, ["forget-dog", "forget-pizza"])
        >>> unstack(pipe, ["forget-pizza"])
        >>> strengths(pipe)
        {'forget-dog': 1.0}
    """
    models = _denoisers(pipe, names or ())
    for model, _ in models:
        adapters.check_layers(model)
    for model, on_model in models:
        for name in on_model:
            if names is None or name in names:
                adapters.remove(model, name)
