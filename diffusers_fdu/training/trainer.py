"""One adapter's training: from what was recorded to its weights on the denoiser."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import set_peft_model_state_dict
from torch import nn

from ..adapters import lora as adapters
from ..config import CheckpointConfig, TrainConfig
from ..data.plan import RecordingPlan, RunContext
from ..data.replay_buffer import ReplayBuffer
from ..data.sampler import Sampler
from ..divergences.variational import VariationalLoss
from ..pipelines.offload import is_streamed, onloaded, placement, streamed
from ..pipelines.recorder import Recorder
from ..settings import Settings
from ..utils.io import as_json
from .acceleration import precision, set_aside
from .callbacks import Callback, Hooks, StepRecord
from .checkpoint import Checkpoints
from .closed_form import closed_form_start
from .fsdp import sharded
from .identity import pipe_facts
from .loop import train
from .objective import Objective, initial_distances
from .resolve import TrainingPlan, learning_rate
from .robust import Adversary

FARTHER = 2.0  # times the first distance, which one batch does not reach by chance


class TrainResult(NamedTuple):
    """What a training left besides the adapter.

    Args:
        history: a record of every step.
        objective: what was minimised.
        settings: with what they had left open, and the micro-batches that it ended with.
    """

    history: list[StepRecord]
    objective: Objective
    settings: Settings

    def facts(self, buffer: ReplayBuffer) -> dict[str, Any]:
        """What the recipe says of the training besides what it was told."""
        first, last = self.history[0], self.history[-1]
        return {
            "sigma": self.objective.sigmas,
            "steps_done": len(self.history),
            "divergence": {"first": first.divergence, "last": last.divergence},
            "distance": {"first": self.objective.first, "last": last.distance},
            "buffer": {
                "unlearn": buffer.count("unlearn"),
                "retain": buffer.count("retain"),
                "bytes": buffer.nbytes,
            },
        }


@dataclass(frozen=True)
class Trainer:
    """Trains one adapter.

    Args:
        context: the pipeline, and the options, in which "auto" performance has been resolved.
        recorder: of the pipe, see `RecordingPlan`.
        plan: the adapter.
    """

    context: RunContext
    recorder: Recorder
    plan: TrainingPlan

    def about(self) -> dict[str, Any]:
        """What the result depends on besides what is recorded, as JSON types.

        Raises:
            ValueError: if a function is among it that has no name of its own.
        """
        config, _, performance = self.context.settings
        machine = {n: getattr(performance, n) for n in ("mixed_precision", "optimizer")}
        # Functions of the user's own may share a name: some of their values tell them apart.
        at = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
        shape: dict[str, Any] = {"profile": self.plan.loss.divergence.phi(at).tolist()}
        if self.plan.critic is not None:
            bound = self.plan.critic.bound(at, at)
            shape["bound"] = torch.stack([value.detach() for value in bound]).tolist()
        if self.plan.init_adapter is not None:
            shape["start"] = self.plan.init_adapter.digest
        return as_json(
            {
                "f": self.plan.f,
                **shape,
                **machine,
                **pipe_facts(self.context.pipe),
                "config": config,
                "processes": self.context.processes.count,
            }
        )

    def open_checkpoints(
        self, config: CheckpointConfig | None, recording: RecordingPlan
    ) -> Checkpoints | None:
        """The training's checkpoints, the same step on all processes; None without a config.

        Raises:
            ValueError: see `Checkpoints` and `about`.
        """
        if config is None:
            return None
        processes = self.context.processes
        about = {**recording.about(), **self.about()}
        checkpoints = Checkpoints(config, about, processes.is_main)
        processes.check_same("the checkpoint's step", checkpoints.step)
        return checkpoints

    def run(
        self,
        buffer: ReplayBuffer,
        before: adapters.AdapterState,
        callback: Callback | None,
        checkpoints: Checkpoints | None,
    ) -> TrainResult:
        """Attach an adapter, train it, and leave it frozen and active.

        Args:
            buffer: what was recorded.
            before: what was on the denoiser.
            callback: called after every step.
            checkpoints: where the state is kept.

        Raises:
            ValueError: if the closed form was asked for and cannot be had, and see `Sampler`,
                `Objective` and `train`.
            FloatingPointError: see `train`.
        """
        model, name = self.context.model, self.plan.adapter_name
        config, _, performance = self.context.settings
        device, streams = placement(model).device, is_streamed(model)
        shards = performance.shard and self.context.processes.count > 1
        with set_aside(self.context.pipe, model, self.context.settings.offloads):
            state = checkpoints.state if checkpoints is not None else None
            sampler, objective = self._prepare(buffer, state)
            buffer.clear("adversarial")  # an earlier training's
            with onloaded(model):
                parameters = adapters.attach(model, name, self.plan.lora, config.seed)
                with streamed(model, device, streams):
                    config = self._started(name, buffer)
                    is_plain = config.init == "lora" and self.plan.init_adapter is None
                    rate = learning_rate(model, config, is_plain)
                    config = replace(config, learning_rate=rate)
                    self.context.processes.agree_(parameters)
                with (
                    streamed(model, device, streams and not shards),
                    sharded(model, parameters, device, shards) as asked,
                ):
                    sampler.model = asked
                    settings = self.context.settings._replace(train=config)
                    hooks = Hooks(
                        callback,
                        self.context.progress,
                        self._adversary(asked, buffer),
                        checkpoints,
                    )
                    history, performance = train(
                        asked, parameters, sampler, objective, settings, hooks
                    )
                adapters.finish(model, name, before)
        if history and history[-1].distance > FARTHER * objective.first:
            warnings.warn(
                "the target is farther from its anchor than before the training: lower "
                f"learning_rate, which was {config.learning_rate:g}",
                RuntimeWarning,
                stacklevel=4,
            )
        return TrainResult(history, objective, settings._replace(performance=performance))

    def _prepare(
        self, buffer: ReplayBuffer, state: dict[str, Any] | None
    ) -> tuple[Sampler, Objective]:
        """What draws the batches, and what is minimised on them; no new adapter is there yet."""
        config, _, performance = self.context.settings
        sampler = Sampler(
            self.context.model,
            buffer,
            config.batch_size,
            config.seed,
            retains=config.retain_weight > 0,
            apart=config.surgery,
            processes=self.context.processes,
            alike=performance.shard,
        )
        size = 2 * performance.micro_batch(config.batch_size)  # as training calls with
        if state is None:
            distances = initial_distances(self.context.model, sampler, self.plan.loss, size)
            for distance in distances:  # the last bits may differ between devices
                self.context.processes.agree_([distance])
        else:
            device = placement(self.context.model).device
            distances = [distance.to(device) for distance in state["objective"]["distances"]]
        estimator = None
        if self.plan.critic is not None:
            shape = buffer.predictions(buffer.entries("unlearn")[:1]).shape[1:]
            device, seed = distances[0].device, config.seed
            estimator = VariationalLoss(
                self.plan.critic, shape, config.critic, device, seed, self.context.processes
            )
        return sampler, Objective(self.plan.loss, distances, config.retain_weight, estimator)

    def _adversary(self, model: nn.Module, buffer: ReplayBuffer) -> Adversary | None:
        """What searches for ways back while the model trains; None: nothing does."""
        config, data, performance = self.context.settings
        if data.defence is None:
            return None
        autocast, _ = precision(model, performance.mixed_precision)
        processes = self.context.processes
        return Adversary(
            model, self.recorder, buffer, data.defence, config.seed, processes, autocast
        )

    def _started(self, name: str, buffer: ReplayBuffer) -> TrainConfig:
        """The config with the start that the new adapter was given."""
        config = self.context.settings.train
        if self.plan.init_adapter is not None:
            set_peft_model_state_dict(
                self.context.model, self.plan.init_adapter.state, adapter_name=name
            )
            return replace(config, init="lora")
        if config.init == "lora":
            return config
        size = 2 * self.context.settings.performance.micro_batch(config.batch_size)
        layers = closed_form_start(self.context.model, name, buffer, size)
        if not layers and config.init == "closed_form":
            raise ValueError(
                "init='closed_form' needs an anchor in words, and layers that read the text "
                f"alone, of which {type(self.context.model).__name__} has none adapted here: use "
                "init='lora'"
            )
        return replace(config, init="closed_form" if layers else "lora")
