"""The front door: make a pipeline forget a concept."""

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .adapters import loading, recipe
from .adapters import lora as adapters
from .data.concepts import Anchor, Target, make_concepts
from .data.plan import RunContext
from .data.replay_buffer import ReplayBuffer
from .hub.preview import draw_pictures
from .hub.push import push
from .pipelines.denoiser import denoiser_name, denoiser_names
from .pipelines.offload import placement
from .settings import Settings, settings
from .training import auto_fit
from .training.acceleration import without_cudnn_attention
from .training.callbacks import Callback, StepRecord
from .training.checkpoint import CheckpointConfig
from .training.memory import Estimate
from .training.resolve import F, resolve_plan
from .training.trainer import Trainer, plan_recording, record
from .utils.distributed import Processes
from .utils.io import writable_folder, write_json


class FDUnlearner:
    """Unlearns concepts from a diffusers pipeline under any f-divergence, as a LoRA.

    Args:
        pipe: a diffusers text-to-image pipeline.
        pipeline_kwargs: arguments of the recorded runs, such as height, width and guidance_scale;
            num_inference_steps is the most steps of a run, 8 if it is not given.
        progress: whether to show progress bars, and how the training was fitted to the machine.
        component: name of the denoiser to train; by default the pipe's first. Of a pipeline with
            two, as Wan 2.2, each is trained by an unlearner of its own.
        **options: fields of `TrainConfig`, `DataConfig` and `PerformanceConfig`.

    Attributes:
        adapter_name: name of the adapter that was trained last, None before.
        history: the `StepRecord` of every step of the last training.
        recipe: everything needed to train the last adapter again, as JSON types.

    Raises:
        ValueError: if the pipe has no denoiser or an option has a bad value.
        TypeError: for an unknown option.

    Example:
        >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
        >>> pipe = unlearner.unlearn("dog", "cat", f="kl")
        >>> unlearner.adapter_name, len(unlearner.history)
        ('forget-dog', 2)
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
        options = Settings(self.config, self.data, self.performance)
        return RunContext(
            self.pipe, self.component, options, self.pipeline_kwargs, self.processes, self.progress
        )

    def estimate(self) -> Estimate | None:
        """Estimate how much memory a training would take, fitted to the machine.

        The denoiser is traced for one row and for two, without taking the memory where that is
        possible. The pipe stays as it is.

        Returns:
            Bytes of each phase; None if the denoiser ran out of memory with one row.

        Example:
            >>> print(FDUnlearner(pipe).estimate())
            recording: ... GiB...
        """
        return auto_fit.fit_together(self.context, traces=True).estimate

    @without_cudnn_attention()
    def record(
        self, target: Target | Sequence[Target], anchor: Anchor | Sequence[Anchor] = None
    ) -> ReplayBuffer:
        """Record what the frozen model does, as `unlearn` does first; the pipe stays as it is.

        Args:
            target: what is to be forgotten, see `unlearn`.
            anchor: what takes its place, see `unlearn`.

        Returns:
            A buffer that any number of trainings of these concepts can take, on the same pipe
            with the same adapters.

        Raises:
            ValueError: for a bad target or anchor, or prompts longer than the tokenizer takes.

        Example:
            >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
            >>> buffer = unlearner.record("dog", "cat")
            >>> for f in ("kl", "tv"):
            ...     _ = unlearner.unlearn("dog", "cat", f=f, buffer=buffer)
            ...     pipe.unload_lora_weights()
        """
        targets = make_concepts(target, anchor)
        adapters.check_denoiser(self.model)
        state_before = adapters.snapshot(self.model)
        try:
            with auto_fit.fitted(self.context) as context:
                return record(plan_recording(context, targets))
        finally:
            adapters.restore_flags(self.model, state_before)

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

        Adapters that are active on the pipe count as the frozen model: what they erased stays
        erased. Whatever is raised, Ctrl-C included, the pipe is left as it was.

        Args:
            target: what to forget; a `Concept` says more, such as that it is a style. A list
                trains one adapter for all.
            anchor: what takes its place: words, a `NegativeGuidance`, or by default what an
                empty prompt gives. For a list of targets one for each, or one for all.
            f: the divergence, see `divergence`; for the variational estimator a name of
                `CONJUGATES` or a `Conjugate`; "auto" or an `AutoDivergence` to choose one.
            adapter_name: name of the LoRA; by default it is made from the targets.
            buffer: what `record` returned for these concepts; by default it is recorded now.
            init_adapter: folder or Hub name of an adapter to go on from, with its weights, rank,
                alpha and layers; by default the adapter begins anew.
            callback: called with a `StepRecord` after every step; if it returns True, the
                training ends there.
            checkpoint: where the training's state is kept, and what to go on from; by default
                nothing is kept.

        Returns:
            The same pipe, the adapter loaded and active beside those that were.

        Raises:
            ValueError: for a bad target, anchor, divergence or name, for prompts longer than the
                tokenizer takes, and for a damaged checkpoint, or one of another training.
            FloatingPointError: if the loss is not finite.

        Example:
            >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
            >>> _ = unlearner.unlearn(["dog", Concept("blob", kind="style")], ["cat", None])
            >>> pipe.get_active_adapters()
            ['forget-dog-blob']
        """
        plan = resolve_plan(
            self.context, make_concepts(target, anchor), f, adapter_name, init_adapter
        )
        state_before = adapters.snapshot(self.model)
        context = replace(self.context, settings=self.context.settings._replace(train=plan.config))
        started = time.monotonic()
        try:
            pictures = context.settings.pictures(len(plan.concepts)) if buffer is None else 0
            with auto_fit.fitted(context, pictures, tells=buffer is None) as context:
                recording = plan_recording(context, plan.concepts, plan.init_adapter is None)
                trainer = Trainer(context, recording, plan)
                checkpoints = trainer.open_checkpoints(checkpoint)
                buffer = trainer.obtain_buffer(buffer, checkpoints)
                recorded = time.monotonic()
                result = trainer.run(buffer, state_before, callback, checkpoints)
            times = {"record": recorded - started, "train": time.monotonic() - recorded}
            self.recipe = recipe.make_recipe(
                self.pipe,
                result.settings,
                self.pipeline_kwargs,
                component=self.component,
                dtype=str(placement(self.model).dtype).removeprefix("torch."),
                **plan.facts(),
                **result.facts(buffer),
                active_adapters=adapters.strengths(self.model, state_before.active),
                seconds={phase: round(seconds, 2) for phase, seconds in times.items()},
            )
        except BaseException:
            adapters.remove(self.model, plan.adapter_name, state_before)
            raise
        self.adapter_name, self.history = plan.adapter_name, result.history
        return self.pipe

    def save(self, directory: str | Path, format: loading.Format = "diffusers") -> Path:
        """Write the adapter and its recipe.

        `pytorch_lora_weights.safetensors` is what `pipe.load_lora_weights(directory)` reads
        where diffusers_fdu is not installed; `recipe.json` is what trained it. Of processes that
        trained together only the main one writes, and the others wait for it.

        Args:
            directory: the folder, made if missing.
            format: "peft" for pipelines without a LoRA loader: `adapter_model.safetensors` and
                `adapter_config.json`, see `load_unlearned`.

        Returns:
            The directory.

        Raises:
            RuntimeError: if nothing was unlearned yet, or the adapter was taken off the pipe.
            ValueError: if the directory cannot be written, or diffusers has no loader for this
                pipeline.

        Example:
            >>> unlearner = FDUnlearner(pipe, steps=2, trajectories=2, progress=False)
            >>> _ = unlearner.unlearn("pizza", "carrot")
            >>> sorted(path.name for path in unlearner.save("pizza").iterdir())
            ['pytorch_lora_weights.safetensors', 'recipe.json']
        """
        if self.adapter_name is None:
            raise RuntimeError("nothing to save: call unlearn first")
        if self.adapter_name not in getattr(self.model, "peft_config", {}):
            raise RuntimeError(f"adapter {self.adapter_name!r} is no longer on the pipe")
        loading.check_format(self.pipe, format)
        folder = Path(directory)
        if self.processes.is_main:
            folder = writable_folder(directory)
            loading.save_adapter(self.pipe, self.component, self.adapter_name, folder, format)
            write_json(folder / recipe.RECIPE_NAME, self.recipe)
        self.processes.wait()
        return folder

    def push_to_hub(self, repo_id: str, *, pictures: bool = True, **options: Any) -> str | None:
        """Put the adapter on the Hub with its recipe, a model card and pictures.

        Args:
            repo_id: `user/name`, made if missing.
            pictures: whether to draw four prompts without the adapter and with it, for the card.
            **options: arguments of `push`: private, token, commit_message, base_model, license.

        Returns:
            The repository's address; None on processes that are not the main one.

        Raises:
            RuntimeError, ValueError, HubError: see `save` and `push`.

        Example:
            >>> unlearner.push_to_hub("me/no-snoopy", private=True)  # doctest: +SKIP
            'https://huggingface.co/me/no-snoopy'
        """
        format: loading.Format = "diffusers" if loading.has_loader(self.pipe) else "peft"
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save(temporary, format)
            if not self.processes.is_main:
                return None
            name, kwargs = str(self.adapter_name), self.pipeline_kwargs
            draw = partial(draw_pictures, self.pipe, self.component, name, self.recipe, kwargs)
            return push(folder, repo_id, draw=draw if pictures else None, **options)
