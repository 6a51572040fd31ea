"""One adapter's training: what it is recorded on, and from there to its weights."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import set_peft_model_state_dict

from ..adapters import lora as adapters
from ..adapters.target_modules import has_cross_attention
from ..config import TrainConfig
from ..data.concepts import Concept
from ..data.plan import RecordingPlan, RunContext
from ..data.replay_buffer import ReplayBuffer
from ..data.sampler import Sampler
from ..divergences.variational import VariationalLoss
from ..pipelines.denoiser import denoiser_names
from ..pipelines.offload import is_streamed, onloaded, placement, streamed
from ..settings import Settings
from ..utils.io import as_json
from .acceleration import set_aside
from .agreement import Agreement, starts_in_closed_form
from .callbacks import Callback, Hooks, StepRecord
from .checkpoint import CheckpointConfig, Checkpoints
from .closed_form import closed_form_start
from .fsdp import sharded
from .identity import active_strengths, pipe_facts
from .loop import TrainingLoop
from .objective import Objective, initial_distances
from .resolve import TrainingPlan, learning_rate
from .robust import Adversary, record_attacks

FARTHER = 2.0  # times the first distance, which one batch does not reach by chance


def plan_recording(
    context: RunContext, concepts: Sequence[Concept], is_new: bool = True
) -> RecordingPlan:
    """Say what is to be recorded; for a new adapter recording may stop early.

    How few pictures suffice without the closed form was not measured.
    """
    pipe, model, settings = context.pipe, context.model, context.settings
    stops_early = is_new and starts_in_closed_form(settings, model)
    agreement = Agreement(pipe, model, settings) if stops_early else None
    strengths = {name: active_strengths(getattr(pipe, name)) for name in denoiser_names(pipe)}
    return RecordingPlan(context, concepts, agreement, has_cross_attention(model), strengths)


def record(recording: RecordingPlan) -> ReplayBuffer:
    """Draw what was planned, and for robust training what an adversary looks for."""
    buffer = recording.run()
    if (robust := recording.context.settings.data.defence) is not None:
        record_attacks(recording, robust, buffer)
    return buffer


class TrainResult(NamedTuple):
    """What a training left besides the adapter; its settings have no "auto" any more."""

    history: list[StepRecord]
    objective: Objective
    settings: Settings

    def facts(self, buffer: ReplayBuffer) -> dict[str, Any]:
        """What the recipe says of the training besides what it was told."""
        first, last = self.history[0], self.history[-1]
        unlearn, retain = buffer.count("unlearn"), buffer.count("retain")
        return {
            "sigma": self.objective.sigmas,
            "steps_done": len(self.history),
            "divergence": {"first": first.divergence, "last": last.divergence},
            "distance": {"first": self.objective.first, "last": last.distance},
            "buffer": {"unlearn": unlearn, "retain": retain, "bytes": buffer.nbytes},
        }


@dataclass(frozen=True)
class Trainer:
    """Trains one adapter: the plan, on what is recorded, in a context without open options."""

    context: RunContext
    recording: RecordingPlan
    plan: TrainingPlan

    def open_checkpoints(self, config: CheckpointConfig | None) -> Checkpoints | None:
        """The training's checkpoints, the same step on all processes; None without a config."""
        if config is None:
            return None
        processes = self.context.processes
        fingerprint = {**self.recording.about(), **self._fingerprint()}
        checkpoints = Checkpoints(config, fingerprint, processes.is_main)
        step = 0 if checkpoints.state is None else len(checkpoints.state["history"])
        processes.check_same("the checkpoint's step", step)
        return checkpoints

    def _fingerprint(self) -> dict[str, Any]:
        """What the result depends on besides what is recorded, as JSON types."""
        config, _, performance = self.context.settings
        # Functions of the user's own may share a name: some of their values tell them apart.
        at = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
        facts: dict[str, Any] = {
            "f": self.plan.f,
            "profile": self.plan.loss.divergence.phi(at).tolist(),
            "mixed_precision": performance.mixed_precision,
            "optimizer": performance.optimizer,
            **pipe_facts(self.context.pipe),
            "config": config,
            "processes": self.context.processes.count,
        }
        if self.plan.conjugate is not None:
            bound = self.plan.conjugate.bound(at, at)
            facts["bound"] = torch.stack([value.detach() for value in bound]).tolist()
        if self.plan.init_adapter is not None:
            facts["start"] = self.plan.init_adapter.digest
        return as_json(facts)

    def obtain_buffer(
        self, buffer: ReplayBuffer | None, checkpoints: Checkpoints | None
    ) -> ReplayBuffer:
        """The buffer that was given, or one of a training that is gone on with, or a new one."""
        new_state = None
        if buffer is not None:
            buffer = self.recording.check(buffer)
        else:
            state = checkpoints.recorded() if checkpoints is not None else None
            # Either all processes have it, or all record.
            if all(self.context.processes.gather([state is not None])) and state is not None:
                buffer = ReplayBuffer.from_state_dict(state)
            else:
                buffer = record(self.recording)
                new_state = buffer.state_dict()
        if checkpoints is not None:
            checkpoints.begin(new_state)
        return buffer

    def run(
        self,
        buffer: ReplayBuffer,
        state_before: adapters.AdapterState,
        callback: Callback | None,
        checkpoints: Checkpoints | None,
    ) -> TrainResult:
        """Attach an adapter, train it, and leave it frozen and active."""
        context, model, name = self.context, self.context.model, self.plan.adapter_name
        config, _, performance = context.settings
        device, streams = placement(model).device, is_streamed(model)
        shards = performance.shard and context.processes.count > 1
        with set_aside(context.pipe, model, context.settings.offloads):
            state = checkpoints.state if checkpoints is not None else None
            sampler, objective = self._prepare(buffer, state)
            buffer.clear("adversarial")  # an earlier training's
            with onloaded(model):
                parameters = adapters.attach(model, name, self.plan.lora, config.seed)
                with streamed(model, device, streams):
                    config = self._initialise(buffer)
                    is_plain = config.init == "lora" and self.plan.init_adapter is None
                    rate = learning_rate(model, config, is_plain)
                    settings = context.settings._replace(train=replace(config, learning_rate=rate))
                    context.processes.broadcast_(parameters)
                with (
                    streamed(model, device, streams and not shards),
                    sharded(model, parameters, device, shards) as student,
                ):
                    sampler.model = student
                    adversary = None
                    if settings.data.defence is not None:
                        recorder = self.recording.recorder()
                        adversary = Adversary(
                            student, recorder, buffer, settings, context.processes
                        )
                    hooks = Hooks(callback, context.progress, adversary, checkpoints)
                    loop = TrainingLoop(student, parameters, sampler, objective, settings, hooks)
                    performance, history = loop.train(), loop.history
                adapters.finish(model, name, state_before)
        if history and history[-1].distance > FARTHER * objective.first:
            message = "the target is farther from its anchor than before the training: lower"
            message = f"{message} learning_rate, which was {rate:g}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return TrainResult(history, objective, settings._replace(performance=performance))

    def _prepare(
        self, buffer: ReplayBuffer, state: dict[str, Any] | None
    ) -> tuple[Sampler, Objective]:
        """What draws the batches, and what is minimised on them; no new adapter is there yet."""
        model, processes = self.context.model, self.context.processes
        config, _, performance = self.context.settings
        sampler = Sampler(
            model,
            buffer,
            config.batch_size,
            config.seed,
            retains=config.retain_weight > 0,
            apart=config.surgery,
            processes=processes,
            alike=performance.shard,
        )
        if state is None:
            size = 2 * performance.micro_batch(config.batch_size)  # as training calls with
            distances = initial_distances(model, sampler, self.plan.loss, size)
            for distance in distances:  # the last bits may differ between devices
                processes.broadcast_([distance])
        else:
            device = placement(model).device
            distances = [distance.to(device) for distance in state["objective"]["distances"]]
        critic = None
        if self.plan.conjugate is not None:
            shape = buffer.predictions(buffer.entries("unlearn")[:1]).shape[1:]
            device = distances[0].device
            critic = VariationalLoss(
                self.plan.conjugate, shape, config.critic, device, config.seed, processes
            )
        return sampler, Objective(self.plan.loss, distances, config.retain_weight, critic)

    def _initialise(self, buffer: ReplayBuffer) -> TrainConfig:
        """Give the new adapter its start, and return the config that says which one it was."""
        model, name = self.context.model, self.plan.adapter_name
        config = self.context.settings.train
        if self.plan.init_adapter is not None:
            set_peft_model_state_dict(model, self.plan.init_adapter.state, adapter_name=name)
            return replace(config, init="lora")
        if config.init == "lora":
            return config
        size = 2 * self.context.settings.performance.micro_batch(config.batch_size)
        layers = closed_form_start(model, name, buffer, size)
        if not layers and config.init == "closed_form":
            raise ValueError(
                "init='closed_form' needs an anchor in words, and layers that read the text "
                f"alone, of which {type(model).__name__} has none adapted here: use init='lora'"
            )
        return replace(config, init="closed_form" if layers else "lora")
