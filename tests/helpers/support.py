"""Measure every supported pipeline and write the tables of docs/families.md and the README.

    python tests/helpers/support.py

Tiny pipelines with random weights: what is shown is that recording, training, saving, loading and
stacking work, not that a picture is forgotten.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from families import FAMILIES, Family
from paired import errors
from peft import LoraConfig

from diffusers_fdu import FDUnlearner, load_unlearned
from diffusers_fdu.adapters import loading as weights
from diffusers_fdu.adapters import lora as adapters
from diffusers_fdu.adapters import target_modules as targets
from diffusers_fdu.data.concepts import Pair
from diffusers_fdu.data.recording import record
from diffusers_fdu.data.replay_buffer import ReplayBuffer
from diffusers_fdu.data.teacher import ask, predict
from diffusers_fdu.pipelines.denoiser import (
    denoiser_name,
    denoiser_names,
    extract_prediction,
    sample_name,
)
from diffusers_fdu.pipelines.offload import onloaded
from diffusers_fdu.pipelines.recorder import Recorder

TARGET, ANCHOR = "a snoopy", "a dog in a red house"
ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
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
        offloaded: largest difference of the adapter's weights if it is trained under
            `enable_model_cpu_offload` and under `enable_sequential_cpu_offload`, to the CPU.
    """

    replay: float
    swap: float
    distance: float
    round_trip: float
    stacked: bool
    offloaded: float


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
        seen.append(extract_prediction(output, sample))

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
    config = LoraConfig(r=2, target_modules=targets.target_modules(model, None))
    parameters = adapters.attach(model, "other", config, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapters.finish(model, "other", before)
    adapters.activate(model, before.active)


def trained(family: Family, offload: str | None) -> dict[str, torch.Tensor]:
    """Weights of an adapter after a few steps on a pipe whose denoiser is moved by hooks."""
    pipe = family.build()
    if offload == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif offload == "sequential":  # as diffusers does; Accelerate cannot tell cpu:0 from cpu
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                cpu_offload(module, CPU, offload_buffers=len(module._parameters) > 0)
    kwargs = {**family.run, "num_inference_steps": 2, family.guided: 4.0}
    options = {"trajectories": 2, "steps": 3, "batch_size": 2, "retain": ["a tree"]}
    worker = FDUnlearner(pipe, kwargs, False, **options)
    worker.unlearn(TARGET, ANCHOR)
    with onloaded(worker.model):
        found = {n: p.detach().clone() for n, p in worker.model.named_parameters() if "lora_" in n}
    drawn = pipe(prompt=ANCHOR, output_type="latent", generator=torch.manual_seed(0), **kwargs)[0]
    return {**found, "drawn": drawn}


def offload_error(family: Family) -> float:
    """See `Measured`; what the pipe draws afterwards is compared too."""
    expected = trained(family, None)
    differences = []
    for kind in ("model", "sequential")[: 2 if family.streams else 1]:
        found = trained(family, kind)
        assert found.keys() == expected.keys()
        differences += [(found[n] - value).abs().max().item() for n, value in expected.items()]
    return max(differences)


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
        offload_error(family),
    )


def attention(family: Family) -> str:
    """How the denoiser reads the text."""
    return targets.text_attention(model_of(family.build()))


def loader(family: Family) -> str:
    """What loads a saved adapter."""
    pipe = family.build()
    if not weights.has_loader(pipe):
        return "`load_unlearned`"
    second = ", `load_into_transformer_2=True` for the second denoiser"
    return f"`pipe.load_lora_weights`{second if len(denoiser_names(pipe)) > 1 else ''}"


def rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    every = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def readme_table() -> str:
    """What is supported."""
    header = ("Pipeline", "Class", "The text enters by", "Guidance", "Loads with")
    return rows(
        header,
        [
            (f.name, f"`{type(f.build()).__name__}`", attention(f), f.guidance, loader(f))
            for f in FAMILIES.values()
        ],
    )


def measured_table(found: dict[str, Measured], together: dict[str, float]) -> str:
    """What was measured."""
    header = (
        "Pipeline",
        "Predicts",
        "Guidance",
        "Replay error",
        "Swap error",
        "Distance left",
        "Round trip error",
        "Stacks",
        "Offload error",
        "2 processes error",
    )
    lines = []
    for key, one in found.items():
        family = FAMILIES[key]
        numbers = [
            f"{one.replay:g}",
            f"{one.swap:g}",
            f"{one.distance:.0%}",
            f"{one.round_trip:g}",
        ]
        stacks = "yes" if one.stacked else "NO"
        moved = f"{one.offloaded:.1g}" if family.streams else f"{one.offloaded:.1g} (model)"
        own = (family.name, family.prediction, family.guidance)
        lines.append((*own, *numbers, stacks, moved, f"{together[key]:.0e}"))
    return rows(header, lines)


def replace_block(path: Path, table: str) -> None:
    """Put a table between the file's markers."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def main() -> None:
    """Measure all and write both tables."""
    found = {}
    for key, family in FAMILIES.items():
        found[key] = measure(family)
        print(key, found[key], flush=True)
    replace_block(ROOT / "docs" / "families.md", measured_table(found, errors(list(FAMILIES))))
    replace_block(ROOT / "README.md", readme_table())


if __name__ == "__main__":
    main()
