"""The front door: make a pipeline forget a concept."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .adapters import loading as weights
from .adapters import lora as adapters
from .adapters import recipe
from .config import CheckpointConfig
from .data.concepts import Anchor, Target, concepts
from .data.replay_buffer import ReplayBuffer
from .hub.preview import draw_pictures
from .hub.push import push
from .pipelines.context import RunContext
from .pipelines.denoiser import denoiser_name, denoiser_names
from .pipelines.offload import placement
from .settings import Settings, settings
from .training import auto_fit, memory
from .training import recording as recordings
from .training.callbacks import Callback, StepRecord
from .training.gradients import without_cudnn_attention
from .training.resolve import F, resolve_plan
from .training.trainer import Trainer
from .utils.distributed import Processes
from .utils.io import writable_folder, write_json


class FDUnlearner:
    """Unlearns concepts from a diffusers pipeline under any f-divergence, as a LoRA.

        pipe = FDUnlearner(pipe).unlearn("Snoopy", "dog", f="kl")

    Args:
        pipe: a diffusers text-to-image pipeline.
        pipeline_kwargs: arguments of the recorded runs, such as height, width, guidance_scale;
            num_inference_steps is the most steps of a run (`recorder.STEPS` if not given).
        progress: show progress bars, and how the training was fitted to the machine.
        component: the denoiser to train; None: the pipe's first. Of a pipeline with two, as Wan
            2.2, each is trained by an unlearner of its own.
        **options: fields of `TrainConfig`, `DataConfig` and `PerformanceConfig`.

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
        component: str | None = None,
        **options: Any,
    ) -> None:
        self.pipe = pipe
        self.component = denoiser_name(pipe, component)
        if component is None and len(names := denoiser_names(pipe)) > 1:
            warnings.warn(
                f"{type(pipe).__name__} has {len(names)} denoisers, of which {names[0]} alone is "
                f"trained: train the other with FDUnlearner(pipe, component={names[-1]!r}), too",
                UserWarning,
                stacklevel=2,
            )
        self.pipeline_kwargs = dict(pipeline_kwargs or {})
        self.config, self.data, self.performance = settings(options)
        self.processes = Processes(self.performance.data_parallel)
        self.progress = progress and self.processes.is_main
        self.adapter_name: str | None = None
        self.history: list[StepRecord] = []
        self.recipe: dict[str, Any] = {}

    @property
    def model(self) -> torch.nn.Module:
        """The pipe's denoiser."""
        return getattr(self.pipe, self.component)

    @property
    def context(self) -> RunContext:
        """The pipe and the options, as recording and training take them."""
        return RunContext(
            self.pipe,
            self.component,
            Settings(self.config, self.data, self.performance),
            self.pipeline_kwargs,
            self.processes,
            self.progress,
        )

    def estimate(self) -> memory.Estimate | None:
        """How much memory a training would take, fitted to the machine; `print` shows it.

        The denoiser is traced for one row and for two, without taking the memory. The pipe stays
        as it is.

        Returns:
            None if the denoiser had to run for real, and ran out of memory with one row.
        """
        return auto_fit.fit_together(self.context, traces=True).estimate

    @without_cudnn_attention()
    def record(
        self, target: Target | Sequence[Target], anchor: Anchor | Sequence[Anchor] = None
    ) -> ReplayBuffer:
        """Record what the frozen model does, as `unlearn` does first; the pipe stays as it is.

            buffer = unlearner.record("Snoopy", "dog")
            for f in ("kl", "tv"):
                unlearner.unlearn("Snoopy", "dog", f=f, buffer=buffer)

        Args:
            target: see `unlearn`.
            anchor: see `unlearn`.

        Returns:
            A buffer that any number of trainings of these concepts can take.

        Raises:
            ValueError: for a bad target or anchor, and for prompts longer than the tokenizer
                takes.
        """
        found = concepts(target, anchor)
        adapters.check_denoiser(self.model)
        before = adapters.snapshot(self.model)
        try:
            with auto_fit.fitted(self.context) as context:
                return recordings.record(recordings.plan_recording(context, found))
        finally:
            adapters.restore_flags(self.model, before)

    @without_cudnn_attention()
    def unlearn(
        self,
        target: Target | Sequence[Target],
        anchor: Anchor | Sequence[Anchor] = None,
        *,
        f: F = "hellinger",
        adapter_name: str | None = None,
        buffer: ReplayBuffer | None = None,
        init_adapter: str | Path | None = None,
        callback: Callback | None = None,
        checkpoint: CheckpointConfig | None = None,
    ) -> Any:
        """Train a LoRA that does for the target what the frozen model does for the anchor.

            pipe = unlearner.unlearn("Snoopy", "dog", f="kl")
            pipe = unlearner.unlearn(["dog", Concept("blob", kind="style")], ["cat", None])

        Adapters that are active on the pipe count as the frozen model: what they erased stays
        erased.

        Args:
            target: what to forget; a `Concept` says more, such as that it is a style. A list
                trains one adapter for all.
            anchor: what takes its place; None: what an empty prompt gives; or a
                `NegativeGuidance`. For a list of targets one for each, or one for all.
            f: the divergence, see `divergence`; for the variational estimator a name of
                `CONJUGATES` or a `Conjugate`; "auto" or an `AutoDivergence`: by preference.
            adapter_name: of the LoRA; None: made from the targets.
            buffer: what `record` returned for these concepts; None: it is recorded now.
            init_adapter: folder or Hub name of an adapter to go on from, with its weights, rank,
                alpha and layers; None: begin anew.
            callback: called with a `StepRecord` after every step; if it returns True, the
                training ends there.
            checkpoint: where the training's state is kept, and what to go on from; None: nowhere.

        Returns:
            The same pipe, the adapter loaded and active beside those that were.

        Raises:
            ValueError: for a bad target, anchor, divergence or name, and for prompts longer
                than the tokenizer takes; for a missing or damaged checkpoint, or one of another
                training.
            FloatingPointError: if the loss is not finite.

        Whatever is raised, Ctrl-C included, the pipe is left as it was.
        """
        plan = resolve_plan(self.context, concepts(target, anchor), f, adapter_name, init_adapter)
        before = adapters.snapshot(self.model)
        context = replace(self.context, settings=self.context.settings._replace(train=plan.config))
        started = time.monotonic()
        try:
            pictures = context.settings.pictures(len(plan.concepts)) if buffer is None else 0
            with auto_fit.fitted(context, pictures, tells=buffer is None) as context:
                is_new = plan.init_adapter is None
                recording = recordings.plan_recording(context, plan.concepts, is_new)
                trainer = Trainer(context, recording.recorder(), plan)
                checkpoints = trainer.open_checkpoints(checkpoint, recording)
                buffer = recordings.obtain(recording, buffer, checkpoints)
                recorded = time.monotonic()
                result = trainer.run(buffer, before, callback, checkpoints)
            trained = time.monotonic()
            facts = recipe.make_recipe(
                self.pipe,
                result.settings,
                self.pipeline_kwargs,
                component=self.component,
                dtype=str(placement(self.model).dtype).removeprefix("torch."),
                **plan.facts(),
                **result.facts(buffer),
                active_adapters=adapters.strengths(self.model, before.active),
                seconds={
                    "record": round(recorded - started, 2),
                    "train": round(trained - recorded, 2),
                },
            )
        except BaseException:
            adapters.remove(self.model, plan.adapter_name, before)
            raise
        self.adapter_name, self.history = plan.adapter_name, result.history
        self.recipe = facts
        return self.pipe

    def save(self, directory: str | Path, format: weights.Format = "diffusers") -> Path:
        """Write the adapter and its recipe.

        `pytorch_lora_weights.safetensors` is what `pipe.load_lora_weights(directory)` reads
        where diffusers_fdu is not installed; `recipe.json` is what trained it.

        Args:
            directory: made if missing.
            format: "peft" for pipelines without a LoRA loader: `adapter_model.safetensors` and
                `adapter_config.json`, see `load_unlearned`.

        Returns:
            The directory. Of processes that trained together only the main one writes, and the
            others wait for it.

        Raises:
            RuntimeError: if nothing was unlearned yet, or the adapter was taken off the pipe.
            ValueError: if the directory cannot be written, or diffusers has no loader for this
                pipeline.
        """
        if self.adapter_name is None:
            raise RuntimeError("nothing to save: call unlearn first")
        if self.adapter_name not in getattr(self.model, "peft_config", {}):
            raise RuntimeError(f"adapter {self.adapter_name!r} is no longer on the pipe")
        weights.check_format(self.pipe, format)
        folder = Path(directory)
        if self.processes.is_main:
            folder = writable_folder(directory)
            weights.save_adapter(self.pipe, self.component, self.adapter_name, folder, format)
            write_json(folder / recipe.RECIPE_NAME, self.recipe)
        self.processes.wait()
        return folder

    def push_to_hub(self, repo_id: str, *, pictures: bool = True, **options: Any) -> str | None:
        """Put the adapter on the Hub with its recipe, a model card and pictures.

            unlearner.push_to_hub("me/no-snoopy", private=True)

        Args:
            repo_id: `user/name`; made if missing.
            pictures: draw four prompts without the adapter and with it, for the card.
            **options: of `push`: private, token, commit_message, base_model, licence.

        Returns:
            The repository's address; None on processes that are not the main one.

        Raises:
            RuntimeError: see `save`.
            ValueError: see `push`.
            HubError: see `push`.
        """
        format: weights.Format = "diffusers" if weights.has_loader(self.pipe) else "peft"
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save(temporary, format)
            if not self.processes.is_main:
                return None
            return push(folder, repo_id, draw=self._draw if pictures else None, **options)

    def _draw(self, folder: Path) -> None:
        pipe, name = self.pipe, str(self.adapter_name)
        draw_pictures(pipe, self.component, name, self.recipe, self.pipeline_kwargs, folder)
