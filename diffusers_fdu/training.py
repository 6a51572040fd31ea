"""One adapter's training: from what was recorded to its weights on the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from peft import LoraConfig
from torch import nn

from . import adapters
from .checkpoint import Checkpoints
from .closed_form import closed_form_start
from .config import Settings, TrainConfig
from .conjugates import Conjugate
from .loss import DivergenceLoss
from .mining import Miner
from .objective import Objective, initial_distances
from .offload import is_streamed, onloaded, placement, streamed
from .performance import set_aside
from .processes import Processes
from .replay import ReplayBuffer
from .sampling import Sampler
from .sharding import sharded
from .train import Callback, StepRecord, train
from .variational import VariationalLoss


class Trained(NamedTuple):
    """What a training left besides the adapter.

    Args:
        history: a record of every step.
        objective: what was minimised.
        config: with what it had left open.
    """

    history: list[StepRecord]
    objective: Objective
    config: TrainConfig


@dataclass(frozen=True)
class Training:
    """What an adapter is trained on, and how.

    Args:
        pipe: the pipeline.
        model: its denoiser.
        settings: with a number for every field that "auto" leaves to the denoiser.
        processes: train it together.
        progress: show a progress bar.
        loss: the divergence.
        critic: of the variational estimator; None: the divergence's profile.
    """

    pipe: Any
    model: nn.Module
    settings: Settings
    processes: Processes
    progress: bool
    loss: DivergenceLoss
    critic: Conjugate | None

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
        with set_aside(self.pipe, model, performance.offload):
            sampler, objective = self._prepare(buffer)
            buffer.clear("mined")  # an earlier training's
            with onloaded(model):
                parameters = adapters.attach(model, name, lora, config.seed)
                with streamed(model, device, streams):
                    config = self._started(name, buffer)
                    self.processes.agree_(parameters)
                with (
                    streamed(model, device, streams and not shards),
                    sharded(model, parameters, device, shards) as asked,
                ):
                    sampler.model = asked
                    miner = Miner(asked, name, buffer, config.seed) if buffer.candidates else None
                    history = train(
                        asked,
                        parameters,
                        sampler,
                        objective,
                        config,
                        callback,
                        self.progress,
                        performance,
                        miner,
                        checkpoints,
                    )
                adapters.finish(model, name, before)
        return Trained(history, objective, config)

    def _prepare(self, buffer: ReplayBuffer) -> tuple[Sampler, Objective]:
        """What draws the batches, and what is minimised on them; no new adapter is there yet."""
        config, data, _ = self.settings
        sampler = Sampler(
            self.model,
            buffer,
            config.batch_size,
            config.seed,
            retains=config.retain_weight > 0,
            apart=config.surgery,
            sampling=data.timestep_sampling,
            weights=data.timestep_weights,
            scheduler=getattr(self.pipe, "scheduler", None),
            processes=self.processes,
            alike=self.settings.performance.shard,
        )
        size = 2 * config.batch_size  # as many rows as training calls with
        distances = initial_distances(self.model, sampler, self.loss, size)
        estimator = None
        if self.critic is not None:
            shape = buffer.predictions(buffer.entries("unlearn")[:1]).shape[1:]
            device, seed = distances[0].device, config.seed
            estimator = VariationalLoss(
                self.critic, shape, config.critic, device, seed, self.processes
            )
        return sampler, Objective(self.loss, distances, config.retain_weight, estimator)

    def _started(self, name: str, buffer: ReplayBuffer) -> TrainConfig:
        """The config with the start that the new adapter was given."""
        config = self.settings.train
        if config.init == "lora":
            return config
        layers = closed_form_start(self.model, name, buffer, 2 * config.batch_size)
        if not layers and config.init == "closed_form":
            raise ValueError(
                "init='closed_form' needs an anchor in words, and layers that read the text "
                f"alone, of which {type(self.model).__name__} has none adapted here: use "
                "init='lora'"
            )
        return replace(config, init="closed_form" if layers else "lora")
