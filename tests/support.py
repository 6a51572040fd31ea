"""Measure every supported pipeline and write the tables of docs/families.md and the README.

    python tests/support.py

Tiny pipelines with random weights: what is shown is that recording, training, saving, loading and
stacking work, not that a picture is forgotten.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from families import FAMILIES, Family
from peft import LoraConfig

from diffusers_fdu import FDUnlearner, adapters, load_unlearned, weights
from diffusers_fdu.answers import ask, predict
from diffusers_fdu.concepts import Pair
from diffusers_fdu.denoiser import denoiser_name, predicted, sample_name
from diffusers_fdu.recorder import Recorder
from diffusers_fdu.replay import ReplayBuffer
from diffusers_fdu.trajectories import record

TARGET, ANCHOR = "a snoopy", "a dog in a red house"
CPU = torch.device("cpu")
TRAINING = {"trajectories": 4, "steps": 40, "batch_size": 4, "rank": 8, "early_stop": 0.0}


@dataclass(frozen=True)
class Measured:
    """What one family did.

    Args:
        replay: largest error of a replayed call, float32.
        swap: largest error of the target's conditioning at a recorded state.
        distance: mean squared distance of the target from its anchor after training, as a share
            of that before.
        round_trip: largest difference of predictions with the adapter, once saved and loaded.
        stacked: whether the adapter works beside another, and alone again after it.
    """

    replay: float
    swap: float
    distance: float
    round_trip: float
    stacked: bool


def model_of(pipe: Any) -> Any:
    """The denoiser."""
    return getattr(pipe, denoiser_name(pipe))


def replayed(family: Family) -> tuple[float, float]:
    """Errors of replay and swap, without guidance, where calls are asked again as they were."""
    pipe = family.build()
    kwargs = {**family.run, "num_inference_steps": 2, family.guided: family.off}
    recorder = Recorder(pipe, kwargs, seed=3)
    buffer = record(recorder, [Pair(TARGET, ANCHOR)], [], torch.float32, progress=False)
    model = model_of(pipe)
    first, target = buffer.entries("retain")[0], buffer.entries("unlearn")[0]
    errors = []
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        sample = kwargs[sample_name(model)] if sample_name(model) in kwargs else args[0]
        seen.append(predicted(output, sample))

    handle = model.register_forward_hook(keep, with_kwargs=True)
    generator = torch.Generator().manual_seed(3)
    shown = {**kwargs, family.guided: family.off}
    # The scheduler of the first recorded run is the pipe's own, with half of its steps.
    shown["num_inference_steps"] = 1
    pipe(prompt=TARGET, generator=generator, output_type="latent", **shown)
    handle.remove()
    expected = [buffer.predictions([first]), seen[0][:1]]
    for entry, value in zip((first, target), expected, strict=True):
        with torch.no_grad():
            answer = predict(model, buffer.calls([entry], CPU, torch.float32))
        errors.append((answer - value).abs().max().item())
    return errors[0], errors[1]


def distance(model: Any, buffer: ReplayBuffer) -> float:
    """Mean squared distance of the target from its anchor."""
    entries = buffer.entries("unlearn")
    return (ask(model, buffer, entries) - buffer.predictions(entries)).square().mean().item()


def add_other(model: Any) -> None:
    """Another adapter with an effect, switched off."""
    before = adapters.snapshot(model)
    config = LoraConfig(r=2, target_modules=adapters.target_modules(model, None))
    parameters = adapters.attach(model, "other", config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapters.finish(model, "other", before)
    adapters.activate(model, before.active)


def measure(family: Family) -> Measured:
    """Record, replay, train, save, load and stack."""
    replay, swap = replayed(family)
    pipe = family.build()
    kwargs = {**family.run, "num_inference_steps": 4, family.guided: 4.0}
    worker = FDUnlearner(
        pipe, kwargs, False, retain=["a tree"], init="lora", learning_rate=1e-2, **TRAINING
    )
    buffer = worker.record(TARGET, ANCHOR)
    before = distance(worker.model, buffer)
    worker.unlearn(TARGET, ANCHOR, buffer=buffer)
    after = distance(worker.model, buffer)
    entries = buffer.entries("unlearn")
    own = ask(worker.model, buffer, entries)
    format: weights.Format = "diffusers" if weights.has_loader(pipe) else "peft"
    fresh = family.build()
    model = model_of(fresh)
    with tempfile.TemporaryDirectory() as folder:
        worker.save(folder, format)
        if format == "diffusers":
            fresh.load_lora_weights(folder, adapter_name="forget")
        else:
            load_unlearned(fresh, folder, "forget")
    loaded = ask(model, buffer, entries)
    add_other(model)
    adapters.activate(model, ["forget", "other"])
    both = ask(model, buffer, entries)
    adapters.activate(model, ["other"])
    other = ask(model, buffer, entries)
    adapters.activate(model, ["forget"])
    alone = ask(model, buffer, entries)
    far = [(both - value).abs().max() > 1e-4 for value in (other, alone)]
    return Measured(
        replay,
        swap,
        after / before,
        (loaded - own).abs().max().item(),
        all(far) and torch.equal(alone, loaded),
    )


if __name__ == "__main__":
    for name, one in FAMILIES.items():
        print(name, measure(one), flush=True)
