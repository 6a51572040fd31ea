"""The training loop: rows of a replay buffer in, LoRA weights out."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config import PerformanceConfig
from ..data.replay_buffer import Row
from ..data.sampler import Batch, Draw, Sampler
from ..settings import Settings
from ..utils.micro_batches import MicroBatches
from . import acceleration, optim
from .callbacks import Hooks, StepRecord
from .objective import Objective, answer_batch

SMOOTHING = 0.8  # of the difference that early stop looks at
BLOCKED = "frozen layers after it compute without gradients, as kernels made for inference do"
"""Why weights in front of a quantised layer, for one, would stay as they are without a word."""
SHOWN = ("loss", "divergence", "retain")  # beside the progress bar


class TrainingLoop:
    """Trains the adapter that is active on a model; `history` has a record of every step.

    The adapter's weights are float32, and the learning rate of the settings is a number.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        sampler: Sampler,
        objective: Objective,
        settings: Settings,
        hooks: Hooks,
    ) -> None:
        self.config, _, self.performance = settings
        self.hooks, self.adversary = hooks, hooks.adversary
        self.model, self.parameters, self.sampler = model, parameters, sampler
        self.objective, self.processes = objective, sampler.processes
        self.peak_rate = float(self.config.learning_rate)
        options = self.performance
        self.optimizer = optim.make_optimizer(parameters, self.peak_rate, options.optimizer)
        self.autocast, self.scaler = acceleration.precision(model, options.mixed_precision)
        self.micro = MicroBatches(
            options.micro_batch(self.config.batch_size), "rows of each role", self._free_memory
        )
        self.history: list[StepRecord] = []
        self.smooth, self.seen = 0.0, 0.0  # an average of the last steps, and the weight in it
        self.upcoming: tuple[Draw, Batch] | None = None
        self.state_before_draw = sampler.state_dict()  # of the upcoming rows
        self.critic_is_due = False

    @acceleration.without_cudnn_attention()
    def train(self) -> PerformanceConfig:
        """Take steps until the divergence has fallen, or the steps are used up.

        Returns:
            The options, with the micro-batches that it ended with.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite; nothing was updated
                with it.
        """
        options, critic = self.performance, self.objective.critic
        checkpoints = self.hooks.checkpoints
        state = None if checkpoints is None else checkpoints.state
        with (
            acceleration.checkpointed(self.model, options.gradient_checkpointing),
            acceleration.compiled(self.model, options.compile, self._try_once),
        ):
            if state is not None:
                self.load_state_dict(state)
            elif critic is not None:
                self._warm_up_critic(critic.options.warmup_steps)
            self._run()
            is_checkpointed = getattr(self.model, "is_gradient_checkpointing", False)
        return replace(
            options, micro_batch_size=self.micro.size, gradient_checkpointing=is_checkpointed
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "history": [asdict(record) for record in self.history],
            "average": (self.smooth, self.seen),
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state_dict(),
            "sampler": self.state_before_draw if self.upcoming else self.sampler.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.history = [StepRecord(**record) for record in state["history"]]
        self.smooth, self.seen = state["average"]
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        for part in ("optimizer", "scaler", "objective", "sampler"):
            getattr(self, part).load_state_dict(state[part])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def _free_memory(self) -> bool:
        may_checkpoint = self.performance.gradient_checkpointing == "auto"
        return may_checkpoint and acceleration.start_checkpointing(self.model)

    def _try_once(self) -> None:
        _, batch = self._draw_next()
        self.sampler.load_state_dict(self.state_before_draw)
        answer_batch(self.model, batch, self.autocast).float().square().mean().backward()

    @torch.no_grad()
    def _warm_up_critic(self, steps: int) -> None:
        """Take steps of the critic alone, and set the scale of its pull."""
        for _ in range(steps):
            self.objective.update_critic(*self._predict(self.sampler.draw()), steps=1)
        self.objective.balance(*self._predict(self.sampler.draw()))

    def _run(self) -> None:
        steps, done, hooks = self.config.steps, len(self.history), self.hooks
        bar = tqdm(range(done, steps), "unlearn", steps, initial=done, disable=not hooks.progress)
        for step in bar:
            if self.smooth < self.config.early_stop * self.objective.first * self.seen:
                break
            if hooks.checkpoints is not None and step > done:
                hooks.checkpoints.save(step, self.state_dict())
            if self.adversary is not None:
                self.adversary(step)
            record = self._step(step)
            self.history.append(record)
            bar.set_postfix({name: f"{getattr(record, name):.4f}" for name in SHOWN})
            self.smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * record.distance
            self.seen = SMOOTHING * self.seen + (1 - SMOOTHING)
            if hooks.callback is not None:
                wants_to_stop = hooks.callback(record) is True
                if any(self.processes.gather([wants_to_stop])):  # all must stop together
                    break
        bar.close()

    def _draw_next(self) -> tuple[Draw, Batch]:
        """The rows of a step, and their first micro-batch."""
        self.state_before_draw = self.sampler.state_dict()
        rows = self.sampler.draw()
        return rows, self.sampler.gather(rows.part(0, self.micro.size))

    def _step(self, step: int) -> StepRecord:
        scaler = self.scaler
        rate = self.peak_rate * optim.learning_rate_factor(step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        metrics, retain_parts = self._accumulate(*(self.upcoming or self._draw_next()))
        # Gathered and sent while the device works, unless rows may change before the next step.
        self.upcoming = None if self.adversary else self._draw_next()
        self.processes.mean_([p.grad for p in self.parameters if p.grad is not None])
        if retain_parts:
            self._operate(retain_parts)
        scaler.unscale_(self.optimizer)
        largest = optim.clip_gradients(self.parameters, self.config.max_grad_norm)
        # Read together, since every read waits for the device.
        self.processes.mean_([metrics])
        loss, divergence, distance, retain, peak = torch.cat([metrics, largest[None]]).tolist()
        record = StepRecord(step, loss, divergence, distance, retain, rate)
        if not math.isfinite(loss):
            advice = "lower learning_rate, or use mixed_precision='no'"
            raise FloatingPointError(f"the loss is {loss} at step {step}: {advice}")
        if not math.isfinite(peak) and not scaler.is_enabled():
            raise FloatingPointError(f"a gradient is {peak} at step {step}: set another sigma")
        scaler.step(self.optimizer)  # leaves out steps whose gradients overflowed in float16
        scaler.update()
        return record

    def _accumulate(self, rows: Draw, first: Batch) -> tuple[Tensor, list[list[Tensor]]]:
        """Gradients of a step, its metrics (4,), and the retain gradients where those are apart.

        Rows go through the denoiser in micro-batches; a step that runs out of memory begins again
        with smaller ones.
        """
        self.critic_is_due = self.objective.critic is not None

        def accumulate() -> tuple[Tensor, list[list[Tensor]]]:
            self.optimizer.zero_grad()
            size = self.micro.size
            if size < len(rows) and self.critic_is_due:
                self._update_critic(*self._predict(rows))  # on the whole step, as without parts
            metrics: list[Tensor] = []
            retain_parts: list[list[Tensor]] = []
            for start in range(0, len(rows), size):
                is_there = start == 0 and first.size == min(size, len(rows))
                batch = first if is_there else self.sampler.gather(rows.part(start, size))
                share = batch.size / len(rows)
                if batch.held is None:
                    metrics.append(self._together(batch, share))
                else:
                    metrics.append(self._apart(batch, batch.held, share, retain_parts))
            return torch.stack(metrics).sum(0), retain_parts

        # Processes that share a denoiser out must call it equally often.
        shares_out = self.performance.shard and self.processes.count > 1
        return accumulate() if shares_out else self.micro.retry(accumulate)

    @torch.no_grad()
    def _predict(self, rows: Draw) -> tuple[Tensor, Batch]:
        """What the student predicts of a draw's rows to unlearn, and these rows as a batch."""

        def predict(part: Sequence[Row]) -> Tensor:
            return answer_batch(self.model, self.sampler.batch(part, []), self.autocast)

        answers = self.micro.map(predict, rows.unlearn)
        return torch.cat(answers), self.sampler.batch(rows.unlearn, [])

    def _update_critic(self, answer: Tensor, batch: Batch) -> None:
        """The critic's steps for one of the student: once in a step, however often it begins."""
        if self.critic_is_due and self.objective.critic is not None:
            steps = self.objective.critic.options.critic_steps
            self.objective.update_critic(answer, batch, steps)
            self.critic_is_due = False

    def _backward(self, value: Tensor, share: float) -> None:
        if not value.requires_grad:
            raise RuntimeError(f"no gradient reaches the adapter: {BLOCKED}")
        self.scaler.scale(value * share).backward()
        missing = sum(p.grad is None for p in self.parameters)
        if missing and not self.history:
            warnings.warn(
                f"no gradient reaches {missing} of the adapter's {len(self.parameters)} weights, "
                f"which stay as they are: {BLOCKED}, or the denoiser does not use them",
                RuntimeWarning,
                stacklevel=2,
            )

    def _together(self, batch: Batch, share: float) -> Tensor:
        """Gradients of the whole objective, in one pass."""
        answer = answer_batch(self.model, batch, self.autocast)
        self._update_critic(answer[: batch.size], batch)
        value, metrics = self.objective(answer, batch)
        self._backward(value, share)
        return metrics * share

    def _apart(
        self, batch: Batch, held: Batch, share: float, retain_parts: list[list[Tensor]]
    ) -> Tensor:
        """Gradients of the two parts: those of what is held are added to `retain_parts`."""
        answer = answer_batch(self.model, batch, self.autocast)
        self._update_critic(answer, batch)
        unlearn, metrics = self.objective.unlearn(answer, batch)
        self._backward(unlearn, share)
        unlearn_gradients = [optim.gradient_of(p) for p in self.parameters]
        self.optimizer.zero_grad()
        answer = answer_batch(self.model, held, self.autocast)
        retain = self.objective.retain(answer, held)
        self._backward(retain, share)
        retain_parts.append([optim.gradient_of(p) for p in self.parameters])
        # The next micro-batch adds to the unlearning gradients alone.
        for parameter, gradient in zip(self.parameters, unlearn_gradients, strict=True):
            parameter.grad = gradient
        objective = unlearn.detach() + retain.detach()
        return share * self.objective.metrics(objective, metrics, retain.detach())

    def _operate(self, retain_parts: list[list[Tensor]]) -> None:
        """Surgery on the whole step's gradients, which then are the sum of both roles'."""
        retain = [torch.stack(parts).sum(0) for parts in zip(*retain_parts, strict=True)]
        self.processes.mean_(retain)
        unlearn = [optim.gradient_of(p) for p in self.parameters]
        optim.project(unlearn, retain)
        torch._foreach_add_(unlearn, retain)
