"""The front door: make a pipeline forget a concept."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch

from . import adapters
from .concepts import Concept, retain_prompts, vocabulary
from .divergences import Divergence, Generator
from .loss import DivergenceLoss
from .train import Callback, StepRecord, TrainConfig, initial_distance, train
from .trajectories import Recorder, denoiser_name, record

RETAIN_PER_TRAJECTORY = 2


class FDUnlearner:
    """Unlearns concepts from a diffusers pipeline under any f-divergence, as a LoRA.

        pipe = FDUnlearner(pipe).unlearn("Snoopy", "dog", f="kl")

    Args:
        pipe: a diffusers text-to-image pipeline.
        pipeline_kwargs: arguments of the recorded runs, such as height, width,
            num_inference_steps, guidance_scale.
        progress: show progress bars.
        **config: fields of `TrainConfig`.

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
        **config: Any,
    ) -> None:
        self.pipe = pipe
        self.component = denoiser_name(pipe)
        self.pipeline_kwargs = dict(pipeline_kwargs or {})
        self.progress = progress
        self.config = TrainConfig.from_options(config)
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
        config = self.config
        loss = DivergenceLoss(f, config.sigma)
        name = adapter_name or adapters.default_adapter_name(concept.target, self.model)
        adapters.check_adapter_name(name, self.model)
        modules = adapters.target_modules(self.model, config.target_modules)
        rank, alpha = config.rank, config.rank if config.alpha is None else config.alpha
        before = adapters.snapshot(self.model)
        started = time.monotonic()
        try:
            self.model.eval()
            buffer = self._record(concept)
            if loss.sigma == "auto":
                loss.calibrate(initial_distance(self.model, buffer, loss))
            recorded = time.monotonic()
            parameters = adapters.attach(self.model, name, rank, alpha, modules, config.seed)
            history = train(self.model, parameters, buffer, loss, config, callback, self.progress)
        except BaseException:
            adapters.remove(self.model, name, before)
            raise
        adapters.finish(self.model, name, before)
        self.adapter_name, self.history = name, history
        self.recipe = self._recipe(concept, loss, modules, alpha)
        self.recipe["buffer"] = {
            "unlearn": buffer.count("unlearn"),
            "retain": buffer.count("retain"),
            "bytes": buffer.nbytes,
        }
        self.recipe["seconds"] = {
            "record": round(recorded - started, 2),
            "train": round(time.monotonic() - recorded, 2),
        }
        return self.pipe

    def _record(self, concept: Concept) -> Any:
        rng = random.Random(self.config.seed)
        words = vocabulary(self.pipe)
        count = self.config.trajectories
        pairs = concept.prompt_pairs(count, words, rng)
        retain = retain_prompts(
            concept, self.config.retain, RETAIN_PER_TRAJECTORY * count, words, rng
        )
        recorder = Recorder(self.pipe, self.pipeline_kwargs, self.config.seed)
        is_bf16 = getattr(self.model, "dtype", None) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 else torch.float16
        return record(recorder, pairs, retain, dtype, self.progress)

    def _recipe(
        self, concept: Concept, loss: DivergenceLoss, modules: list[str], alpha: float
    ) -> dict[str, Any]:
        from . import __version__

        config = {**asdict(self.config), "alpha": alpha, "target_modules": modules}
        return {
            "concept": asdict(concept),
            "f": loss.divergence.name,
            "adapter_name": self.adapter_name,
            "config": config,
            "pipeline_kwargs": {k: _plain(v) for k, v in self.pipeline_kwargs.items()},
            "sigma": float(loss.sigma),
            "steps_done": len(self.history),
            "divergence": {
                "first": self.history[0].divergence,
                "last": self.history[-1].divergence,
            },
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
            RuntimeError: if nothing was unlearned yet.
            ValueError: if the directory cannot be written.
        """
        if self.adapter_name is None:
            raise RuntimeError("nothing to save: call unlearn first")
        folder = writable_folder(directory)
        adapters.save_adapter(self.pipe, self.component, self.adapter_name, folder)
        (folder / "recipe.json").write_text(json.dumps(self.recipe, indent=2) + "\n")
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
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
