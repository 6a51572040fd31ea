"""One adapter's training: from what was recorded to its weights on the denoiser."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, set_peft_model_state_dict
from torch import nn

from ..adapters import lora as adapters
from ..adapters.adapter_file import AdapterFile
from ..config import Performance, Settings, TrainConfig
from ..data.replay_buffer import ReplayBuffer
from ..data.sampler import Sampler
from ..divergences.conjugates import Conjugate
from ..divergences.loss import DivergenceLoss
from ..divergences.variational import VariationalLoss
from ..pipelines.offload import (
    is_streamed,
    onloaded,
    placement,
    streamed,
)
from ..pipelines.recorder import Recorder
from ..utils.distributed import Processes
from ..utils.io import as_json
from .acceleration import precision, set_aside
from .callbacks import Callback, StepRecord
from .checkpoint import Checkpoints
from .closed_form import closed_form_start
from .fsdp import sharded
from .identity import pipe_facts
from .loop import train
from .objective import Objective, initial_distances
from .resolve import f_name, learning_rate
from .robust import Adversary

FARTHER = 2.0  # times the first distance, which one batch does not reach by chance


class Trained(NamedTuple):
    """What a training left besides the adapter.

    Args:
        history: a record of every step.
        objective: what was minimised.
        config: with what it had left open.
        performance: as it was in the end, see `train`.
    """

    history: list[StepRecord]
    objective: Objective
    config: TrainConfig
    performance: Performance

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
class Training:
    """What an adapter is trained on, and how.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        recorder: of the pipe, see `Recording`.
        settings: with a number for every field that "auto" leaves to the denoiser.
        processes: train it together.
        progress: show a progress bar.
        loss: the divergence.
        critic: of the variational estimator; None: the divergence's profile.
        start: an adapter to go on from; None: see `TrainConfig.init`.
    """

    pipe: Any
    model: nn.Module
    recorder: Recorder
    settings: Settings
    processes: Processes
    progress: bool
    loss: DivergenceLoss
    critic: Conjugate | None
    start: AdapterFile | None = None

    def about(self) -> dict[str, Any]:
        """What the result depends on besides what is recorded, as JSON types.

        Raises:
            ValueError: if a function is among it that has no name of its own.
        """
        config, _, performance = self.settings
        machine = {n: getattr(performance, n) for n in ("mixed_precision", "optimizer")}
        # Functions of the user's own may share a name: some of their values tell them apart.
        at = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
        shape: dict[str, Any] = {"profile": self.loss.divergence.phi(at).tolist()}
        if self.critic is not None:
            bound = self.critic.bound(at, at)
            shape["bound"] = torch.stack([value.detach() for value in bound]).tolist()
        if self.start is not None:
            shape["start"] = self.start.digest
        return as_json(
            {
                "f": f_name(self.loss, self.critic),
                **shape,
                **machine,
                **pipe_facts(self.pipe),
                "config": config,
                "processes": self.processes.count,
            }
        )

    def run(
        self,
        buffer: ReplayBuffer,
        name: str,
        lora: LoraConfig,
        before: adapters.AdapterState,
        callback: Callback | None,
        checkpoints: Checkpoints | None,
    ) -> Trained:
        """Attach an adapter, train it, and leave it frozen and active.

        Args:
            buffer: what was recorded.
            name: of the adapter.
            lora: its configuration.
            before: what was on the denoiser.
            callback: called after every step.
            checkpoints: where the state is kept.

        Raises:
            ValueError: if the closed form was asked for and cannot be had, and see `Sampler`,
                `Objective` and `train`.
            FloatingPointError: see `train`.
        """
        model, config, performance = self.model, self.settings.train, self.settings.performance
        device, streams = placement(model).device, is_streamed(model)
        shards = performance.shard and self.processes.count > 1
        with set_aside(self.pipe, model, self.settings.offloads):
            state = checkpoints.state if checkpoints is not None else None
            sampler, objective = self._prepare(buffer, state)
            buffer.clear("adversarial")  # an earlier training's
            with onloaded(model):
                parameters = adapters.attach(model, name, lora, config.seed)
                with streamed(model, device, streams):
                    config = self._started(name, buffer)
                    is_plain = config.init == "lora" and self.start is None
                    rate = learning_rate(model, config, is_plain)
                    config = replace(config, learning_rate=rate)
                    self.processes.agree_(parameters)
                with (
                    streamed(model, device, streams and not shards),
                    sharded(model, parameters, device, shards) as asked,
                ):
                    sampler.model = asked
                    adversary = self._adversary(asked, buffer)
                    history, performance = train(
                        asked,
                        parameters,
                        sampler,
                        objective,
                        config,
                        callback,
                        self.progress,
                        performance,
                        adversary,
                        checkpoints,
                    )
                adapters.finish(model, name, before)
        if history and history[-1].distance > FARTHER * objective.first:
            warnings.warn(
                "the target is farther from its anchor than before the training: lower "
                f"learning_rate, which was {config.learning_rate:g}",
                RuntimeWarning,
                stacklevel=4,
            )
        return Trained(history, objective, config, performance)

    def _prepare(
        self, buffer: ReplayBuffer, state: dict[str, Any] | None
    ) -> tuple[Sampler, Objective]:
        """What draws the batches, and what is minimised on them; no new adapter is there yet."""
        config, _, performance = self.settings
        sampler = Sampler(
            self.model,
            buffer,
            config.batch_size,
            config.seed,
            retains=config.retain_weight > 0,
            apart=config.surgery,
            processes=self.processes,
            alike=performance.shard,
        )
        size = 2 * performance.micro_batch(config.batch_size)  # as training calls with
        if state is None:
            distances = initial_distances(self.model, sampler, self.loss, size)
            for distance in distances:  # the last bits may differ between devices
                self.processes.agree_([distance])
        else:
            device = placement(self.model).device
            distances = [distance.to(device) for distance in state["objective"]["distances"]]
        estimator = None
        if self.critic is not None:
            shape = buffer.predictions(buffer.entries("unlearn")[:1]).shape[1:]
            device, seed = distances[0].device, config.seed
            estimator = VariationalLoss(
                self.critic, shape, config.critic, device, seed, self.processes
            )
        return sampler, Objective(self.loss, distances, config.retain_weight, estimator)

    def _adversary(self, model: nn.Module, buffer: ReplayBuffer) -> Adversary | None:
        """What searches for ways back while the model trains; None: nothing does."""
        config, data, performance = self.settings
        if data.defence is None:
            return None
        autocast, _ = precision(model, performance.mixed_precision)
        return Adversary(
            model, self.recorder, buffer, data.defence, config.seed, self.processes, autocast
        )

    def _started(self, name: str, buffer: ReplayBuffer) -> TrainConfig:
        """The config with the start that the new adapter was given."""
        config = self.settings.train
        if self.start is not None:
            set_peft_model_state_dict(self.model, self.start.state, adapter_name=name)
            return replace(config, init="lora")
        if config.init == "lora":
            return config
        size = 2 * self.settings.performance.micro_batch(config.batch_size)
        layers = closed_form_start(self.model, name, buffer, size)
        if not layers and config.init == "closed_form":
            raise ValueError(
                "init='closed_form' needs an anchor in words, and layers that read the text "
                f"alone, of which {type(self.model).__name__} has none adapted here: use "
                "init='lora'"
            )
        return replace(config, init="closed_form" if layers else "lora")
