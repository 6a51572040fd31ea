"""The front door: make a pipeline forget a concept."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import hub
from .adapters import loading as weights
from .adapters import lora as adapters
from .adapters import recipe
from .adapters.target_modules import has_cross_attention
from .config import Settings, TrainConfig, settings
from .data.concepts import (
    Anchor,
    Concept,
    Target,
    concepts,
)
from .data.plan import Recording
from .data.replay_buffer import ReplayBuffer
from .divergences.choice import Compared, Preference, choose
from .divergences.conjugates import Conjugate
from .divergences.profiles import Divergence, Generator
from .pipelines.denoiser import denoiser_name, denoiser_names
from .pipelines.offload import placement
from .pipelines.recorder import BATCH
from .training import auto_fit, memory
from .training.acceleration import check_supported
from .training.agreement import Agreement, starts_in_closed_form
from .training.callbacks import Callback, StepRecord
from .training.checkpoint import EVERY, Checkpoints, folder_of
from .training.gradients import without_cudnn_attention
from .training.identity import active_strengths
from .training.resolve import (
    divergence_of,
    f_name,
    origin_of,
    settled,
)
from .training.robust import expose_concepts
from .training.trainer import Training
from .utils.distributed import Processes
from .utils.io import writable_folder


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
        **options: fields of `TrainConfig`, `DataConfig` and `Performance`.

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

    def estimate(self) -> memory.Estimate | None:
        """How much memory a training would take, fitted to the machine; `print` shows it.

        The denoiser is traced for one row and for two, without taking the memory. The pipe stays
        as it is.

        Returns:
            None if the denoiser had to run for real, and ran out of memory with one row.
        """
        return self._fit(self.config, traces=True).estimate

    def _fit(self, config: TrainConfig, pictures: int = 0, traces: bool = False) -> auto_fit.Fit:
        """How the training uses the machine; the same on all processes that share a denoiser."""
        settings = Settings(config, self.data, self.performance)
        kwargs = self.pipeline_kwargs
        fit = auto_fit.auto_fit(self.pipe, self.model, settings, kwargs, pictures, traces)
        if self.performance.shard:
            fit = min(self.processes.gather([fit]), key=lambda fit: fit.available)
        return fit

    @without_cudnn_attention()
    def record(
        self, target: Target | Sequence[Target], anchor: Anchor | Sequence[Anchor] = None
    ) -> ReplayBuffer:
        """Record what the frozen model does, as `unlearn` does first; the pipe stays as it is.

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
        fit, device = self._fit(self.config), placement(self.model).device
        self._tell(fit, self.config)
        settings = Settings(self.config, self.data, fit.performance)
        try:
            self.model.eval()
            with (
                torch.inference_mode(False),
                auto_fit.taking_turns(self.pipe, device, fit.offloads_recording),
            ):
                return self._record(self._recording(found, settings))
        finally:
            adapters.restore_flags(self.model, before)

    @without_cudnn_attention()
    def unlearn(
        self,
        target: Target | Sequence[Target],
        anchor: Anchor | Sequence[Anchor] = None,
        *,
        f: str | Divergence | Generator | Conjugate = "hellinger",
        prefer: Preference = "balance",
        comparison: Compared | None = None,
        adapter_name: str | None = None,
        buffer: ReplayBuffer | None = None,
        start: str | Path | None = None,
        callback: Callback | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = EVERY,
        resume_from_checkpoint: bool | str | Path = False,
    ) -> Any:
        """Train a LoRA that does for the target what the frozen model does for the anchor.

        Adapters that are active on the pipe count as the frozen model: what they erased stays
        erased.

        Args:
            target: what to forget; a `Concept` says more, such as that it is a style. A list
                trains one adapter for all.
            anchor: what takes its place; None: what an empty prompt gives; or a
                `NegativeGuidance`. For a list of targets one for each, or one for all.
            f: the divergence, see `divergence`; for the variational estimator a name of
                `CONJUGATES` or a `Conjugate`; "auto": see `choose`.
            prefer: "erase", "balance" or "preserve", for f="auto".
            comparison: what `compare` measured, for f="auto".
            adapter_name: of the LoRA; None: made from the targets.
            buffer: what `record` returned for these concepts; None: it is recorded now.
            start: folder or Hub name of an adapter to go on from, with its weights, rank, alpha
                and layers; None: begin anew.
            callback: called with a `StepRecord` after every step; if it returns True, the
                training ends there.
            checkpoint_dir: where the training's state is kept; None: nowhere.
            checkpoint_every: steps between two checkpoints; the last two stay.
            resume_from_checkpoint: True: go on from the last checkpoint, or begin if there is
                none; a file: from that one; a folder: from its last. The result is that of an
                uninterrupted training. False: begin anew; what is in the folder goes.

        Returns:
            The same pipe, the adapter loaded and active beside those that were.

        Raises:
            ValueError: for a bad target, anchor, divergence or name, and for prompts longer
                than the tokenizer takes; for a missing or damaged checkpoint, or one of another
                training.
            FloatingPointError: if the loss is not finite.

        Whatever is raised, Ctrl-C included, the pipe is left as it was.
        """
        checkpoint_dir = folder_of(checkpoint_dir, resume_from_checkpoint)
        found = concepts(target, anchor)
        origin, lora = origin_of(self.model, self.config, start)
        config = settled(self.model, self.config, lora)
        f = choose(prefer, comparison) if f == "auto" else f
        loss, critic = divergence_of(f, config)
        targets = [concept.target for concept in found]
        name = adapter_name or adapters.default_adapter_name(targets, self.model)
        adapters.check_adapter_name(name, self.model)
        adapters.check_denoiser(self.model)
        check_supported(self.performance, self.model)
        before = adapters.snapshot(self.model)
        pictures = (
            0 if buffer is not None else self.data.pictures(len(found), config.retain_weight > 0)
        )
        fit = self._fit(config, pictures if self.progress else 0)
        if buffer is None:
            self._tell(fit, config)
        settings = Settings(config, self.data, fit.performance)
        started = time.monotonic()
        try:
            self.model.eval()
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                auto_fit.taking_turns(
                    self.pipe, placement(self.model).device, fit.offloads_recording
                ),
            ):
                recording = self._recording(found, settings, origin is None)
                recorder = recording.recorder()
                how = settings, self.processes, self.progress, loss, critic, origin
                training = Training(self.pipe, self.model, recorder, *how)
                checkpoints = None
                if checkpoint_dir is not None:
                    checkpoints = Checkpoints(
                        checkpoint_dir,
                        checkpoint_every,
                        {**recording.about(), **training.about()},
                        resume_from_checkpoint,
                        self.processes.is_main,
                    )
                    self.processes.check_same("the checkpoint's step", checkpoints.step)
                buffer = self._obtain(recording, buffer, checkpoints)
                recorded = time.monotonic()
                done = training.run(buffer, name, lora, before, callback, checkpoints)
            trained = time.monotonic()
            facts = recipe.describe(
                self.pipe,
                (done.config, self.data, done.performance),
                self.pipeline_kwargs,
                concepts=[vars(concept) for concept in found],
                component=self.component,
                dtype=str(placement(self.model).dtype).removeprefix("torch."),
                **done.facts(buffer),
                f=f_name(loss, critic),
                adapter_name=name,
                start=origin.recipe or origin.digest if origin is not None else None,
                active_adapters=adapters.strengths(self.model, before.active),
                seconds={
                    "record": round(recorded - started, 2),
                    "train": round(trained - recorded, 2),
                },
            )
        except BaseException:
            adapters.remove(self.model, name, before)
            raise
        self.adapter_name, self.history, self.recipe = name, done.history, facts
        return self.pipe

    def _tell(self, fit: auto_fit.Fit, config: TrainConfig) -> None:
        """Say what was chosen, beside the progress bars."""
        if self.progress:
            print(fit.line(self.pipe, config.batch_size), file=sys.stderr)
        if not fit.fits:
            warnings.warn(fit.shortage(), RuntimeWarning, stacklevel=3)

    def _recording(
        self, found: Sequence[Concept], settings: Settings, is_new: bool = True
    ) -> Recording:
        batch, model = settings.performance.record_batch, self.model
        # How few pictures to retain suffice without the closed form was not measured.
        stops = is_new and starts_in_closed_form(settings, model)
        return Recording(
            self.pipe,
            found,
            self.data,
            self.pipeline_kwargs,
            self.config.seed,
            self.config.retain_weight > 0,
            self.processes,
            self.component,
            BATCH if batch == "auto" else batch,
            Agreement(self.pipe, model, settings) if stops else None,
            has_cross_attention(model),
            {n: active_strengths(getattr(self.pipe, n)) for n in denoiser_names(self.pipe)},
        )

    def _record(self, recording: Recording) -> ReplayBuffer:
        """Draw, and for robust training what an adversary looks for."""
        buffer, defence = recording.run(self.progress), self.data.defence
        if defence is not None:
            recorder, words = recording.recorder(), recording.words
            seed, progress, processes = self.config.seed, self.progress, self.processes
            expose_concepts(
                recorder, recording.concepts, words, buffer, defence, seed, progress, processes
            )
        return buffer

    def _obtain(
        self, recording: Recording, buffer: ReplayBuffer | None, checkpoints: Checkpoints | None
    ) -> ReplayBuffer:
        """What was recorded: given, kept by a training that is gone on with, or recorded now.

        Raises:
            ValueError: see `Recording.check` and `record`.
        """
        new = None
        if buffer is not None:
            buffer = recording.check(buffer)
        else:
            kept = checkpoints.recorded() if checkpoints is not None else None
            # Either all processes have it, or all record.
            if all(self.processes.gather([kept is not None])) and kept is not None:
                buffer = ReplayBuffer.from_state(kept)
            else:
                buffer = self._record(recording)
                new = buffer.state()
        if checkpoints is not None:
            checkpoints.begin(new)
        return buffer

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
            recipe.write(self.recipe, folder)
        self.processes.wait()
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        pictures: bool = True,
        base_model: str | None = None,
        licence: str | None = None,
    ) -> str | None:
        """Put the adapter on the Hub with its recipe, a model card and pictures.

        Args:
            repo_id: see `push`, as the others that are not here.
            private: see there.
            token: see there.
            commit_message: see there.
            pictures: draw four prompts without the adapter and with it, for the card.
            base_model: see there.
            licence: see there.

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
            hub.check_pushable(folder, repo_id, base_model)
            if pictures and self.adapter_name is not None:
                hub.draw_pictures(
                    self.pipe,
                    self.component,
                    self.adapter_name,
                    self.recipe,
                    self.pipeline_kwargs,
                    folder,
                )
            return hub.push(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                base_model=base_model,
                licence=licence,
            )
