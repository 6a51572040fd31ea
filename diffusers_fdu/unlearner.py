"""The front door: make a pipeline forget a concept."""

from __future__ import annotations

import json
import numbers
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from peft import LoraConfig

from . import adapters
from .closed_form import closed_form_start
from .concepts import Concept, retain_prompts, vocabulary
from .config import RATE_TIMES_WIDTH, TrainConfig, settings
from .divergences import Divergence, Generator
from .loss import DivergenceLoss
from .performance import set_aside
from .recorder import Recorder, denoiser_name
from .replay import ReplayBuffer
from .train import (
    Callback,
    StepRecord,
    initial_distance,
    train,
)
from .trajectories import record

RETAIN_PER_TRAJECTORY = 3


class FDUnlearner:
    """Unlearns concepts from a diffusers pipeline under any f-divergence, as a LoRA.

        pipe = FDUnlearner(pipe).unlearn("Snoopy", "dog", f="kl")

    Args:
        pipe: a diffusers text-to-image pipeline.
        pipeline_kwargs: arguments of the recorded runs, such as height, width, guidance_scale;
            num_inference_steps is the most steps of a run (`recorder.STEPS` if not given).
        progress: show progress bars.
        **options: fields of `TrainConfig` and `Performance`.

    Attributes:
        adapter_name: of the adapter trained last, None before.
        history: one `StepRecord` a step of the training last run.
        recipe: everything needed to train the last adapter again, as JSON types.

    Raises:
        ValueError: if the pipe has no denoiser or an option has a bad value.
        TypeError: for an unknown option.
    """

    def __init__(
        self,
        pipe: Any,
        pipeline_kwargs: dict[str, Any] | None = None,
        progress: bool = True,
        **options: Any,
    ) -> None:
        self.pipe = pipe
        self.component = denoiser_name(pipe)
        self.pipeline_kwargs = dict(pipeline_kwargs or {})
        self.progress = progress
        self.config, self.performance = settings(options)
        self.adapter_name: str | None = None
        self.history: list[StepRecord] = []
        self.recipe: dict[str, Any] = {}

    @property
    def model(self) -> torch.nn.Module:
        """The pipe's denoiser."""
        return getattr(self.pipe, self.component)

    def unlearn(
        self,
        target: str | Concept,
        anchor: str | None = None,
        *,
        f: str | Divergence | Generator = "hellinger",
        adapter_name: str | None = None,
        callback: Callback | None = None,
    ) -> Any:
        """Train a LoRA that does for the target what the frozen model does for the anchor.

        Args:
            target: what to forget; a `Concept` says more, such as that it is a style.
            anchor: what takes its place; None: what an empty prompt gives.
            f: the divergence, see `divergence`.
            adapter_name: of the LoRA; None: made from the target.
            callback: called with a `StepRecord` after every step.

        Returns:
            The same pipe, the adapter loaded and active beside those that were.

        Raises:
            ValueError: for a bad target, anchor, divergence or name, and for prompts longer
                than the tokenizer takes.
            FloatingPointError: if the loss is not finite.

        Whatever is raised, Ctrl-C included, the pipe is left as it was.
        """
        if isinstance(target, Concept) and anchor is not None:
            raise ValueError("the Concept has its own anchor: do not pass another")
        concept = target if isinstance(target, Concept) else Concept(target, anchor)
        lora = adapters.lora_config(
            self.model, self.config.rank, self.config.alpha, self.config.target_modules
        )
        config = self._settled(lora)
        loss = DivergenceLoss(f, config.sigma)
        name = adapter_name or adapters.default_adapter_name(concept.target, self.model)
        adapters.check_adapter_name(name, self.model)
        adapters.check_denoiser(self.model)
        self.performance.check(self.model)
        before = adapters.snapshot(self.model)
        started = time.monotonic()
        try:
            self.model.eval()
            with torch.inference_mode(False), torch.enable_grad():
                buffer = self._record(concept)
                size = 2 * config.batch_size  # as many rows as training calls with
                recorded = time.monotonic()
                with set_aside(self.pipe, self.model, self.performance.offload):
                    distance = initial_distance(self.model, buffer, loss, size)
                    if loss.sigma == "auto":
                        loss.calibrate(distance)
                    parameters = adapters.attach(self.model, name, lora, config.seed)
                    config = self._started(config, name, buffer)
                    history = train(
                        self.model,
                        parameters,
                        buffer,
                        loss,
                        distance,
                        config,
                        callback,
                        self.progress,
                        self.performance,
                    )
            trained = time.monotonic()
            recipe = self._recipe(concept, loss, config, history)
            recipe["adapter_name"] = name
            recipe["active_adapters"] = adapters.strengths(self.model, before.active)
            recipe["buffer"] = {
                "unlearn": buffer.count("unlearn"),
                "retain": buffer.count("retain"),
                "bytes": buffer.nbytes,
            }
            recipe["seconds"] = {
                "record": round(recorded - started, 2),
                "train": round(trained - recorded, 2),
            }
            adapters.finish(self.model, name, before)
        except BaseException:
            adapters.remove(self.model, name, before)
            raise
        self.adapter_name, self.history, self.recipe = name, history, recipe
        return self.pipe

    def _settled(self, lora: LoraConfig) -> TrainConfig:
        """The config with a value for every field that leaves one to the denoiser."""
        modules, rate = sorted(lora.target_modules or ()), self.config.learning_rate
        if rate == "auto":
            rate = RATE_TIMES_WIDTH / adapters.input_width(self.model, modules)
        return replace(
            self.config, learning_rate=rate, alpha=lora.lora_alpha, target_modules=modules
        )

    def _started(self, config: TrainConfig, name: str, buffer: ReplayBuffer) -> TrainConfig:
        """The config with the start that the new adapter was given."""
        if config.init == "lora":
            return config
        layers = closed_form_start(self.model, name, buffer, 2 * config.batch_size)
        if not layers and config.init == "closed_form":
            raise ValueError(
                f"no adapted layer of {type(self.model).__name__} reads the text alone, which "
                "init='closed_form' needs: use init='lora'"
            )
        return replace(config, init="closed_form" if layers else "lora")

    def _record(self, concept: Concept) -> ReplayBuffer:
        rng = random.Random(self.config.seed)
        words = vocabulary(self.pipe)
        count = self.config.trajectories
        pairs = concept.prompt_pairs(count, words, rng)
        retain: list[str] = []
        if self.config.retain_weight:
            retain = retain_prompts(
                concept, self.config.retain, RETAIN_PER_TRAJECTORY * count, words, rng
            )
        recorder = Recorder(self.pipe, self.pipeline_kwargs, self.config.seed)
        is_bf16 = getattr(self.model, "dtype", None) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 else torch.float16
        return record(recorder, pairs, retain, dtype, self.progress)

    def _recipe(
        self,
        concept: Concept,
        loss: DivergenceLoss,
        config: TrainConfig,
        history: list[StepRecord],
    ) -> dict[str, Any]:
        from . import __version__

        return {
            "concept": _plain(asdict(concept)),
            "f": loss.divergence.name,
            "config": _plain(asdict(config)),
            "performance": _plain(asdict(self.performance)),
            "pipeline_kwargs": _plain(self.pipeline_kwargs),
            "sigma": float(loss.sigma),
            "steps_done": len(history),
            "divergence": {"first": history[0].divergence, "last": history[-1].divergence},
            "base_model": str(getattr(self.pipe, "name_or_path", None) or "") or None,
            "pipeline": type(self.pipe).__name__,
            "versions": {
                "diffusers_fdu": __version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "peft": peft.__version__,
            },
        }

    def save(self, directory: str | Path) -> Path:
        """Write the adapter and its recipe.

        `pytorch_lora_weights.safetensors` is what `pipe.load_lora_weights(directory)` reads
        where diffusers_fdu is not installed; `recipe.json` is what trained it.

        Args:
            directory: made if missing.

        Returns:
            The directory.

        Raises:
            RuntimeError: if nothing was unlearned yet, or the adapter was taken off the pipe.
            ValueError: if the directory cannot be written.
        """
        if self.adapter_name is None:
            raise RuntimeError("nothing to save: call unlearn first")
        if self.adapter_name not in getattr(self.model, "peft_config", {}):
            raise RuntimeError(f"adapter {self.adapter_name!r} is no longer on the pipe")
        recipe = json.dumps(self.recipe, indent=2) + "\n"
        folder = writable_folder(directory)
        adapters.save_adapter(self.pipe, self.component, self.adapter_name, folder)
        temporary = folder / "recipe.json.tmp"
        temporary.write_text(recipe)
        temporary.replace(folder / "recipe.json")
        return folder


def writable_folder(directory: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        ValueError: if it cannot be made or written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".fdu-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    return folder


def _plain(value: Any) -> Any:
    """A value as JSON types; what has none is written as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, str | bool | None) else repr(value)
