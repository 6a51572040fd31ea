"""The training loop: rows of a replay buffer in, LoRA weights out."""

from __future__ import annotations

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
from .acceleration import checkpointed, compiled, precision, start_checkpointing
from .callbacks import Hooks, Once, StepRecord
from .gradients import (
    check_depends,
    gradient_of,
    project,
    warn_if_left_out,
    without_cudnn_attention,
)
from .objective import Objective, answer_batch
from .optim import check_finite, clip_gradients, learning_rate_factor, make_optimizer

SMOOTHING = 0.8  # of the difference that early stop looks at
SHOWN = ("loss", "divergence", "retain")  # beside the progress bar


@without_cudnn_attention()
def train(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    sampler: Sampler,
    objective: Objective,
    settings: Settings,
    hooks: Hooks | None = None,
) -> tuple[list[StepRecord], PerformanceConfig]:
    """Train adapter weights until the divergence has fallen, or the steps are used up.

    Args:
        model: the denoiser, its adapter active.
        parameters: the adapter's weights, float32.
        sampler: draws what to unlearn and what to retain.
        objective: see `Objective`.
        settings: all options; the learning rate is a number.
        hooks: what is done between the steps; None: a progress bar is shown.

    Returns:
        A record of every step, and the options with the micro-batches that it ended with.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; nothing was updated
            with it.
        ValueError: if a checkpoint is damaged, or of another training.
    """
    performance, hooks = settings.performance, hooks or Hooks()
    size = performance.micro_batch(settings.train.batch_size)
    autocast, _ = precision(model, performance.mixed_precision)

    def trial() -> None:
        before = sampler.state_dict()
        first = sampler.gather(sampler.draw().part(0, size))
        sampler.load_state_dict(before)
        answer_batch(model, first, autocast).float().square().mean().backward()

    with (
        checkpointed(model, performance.gradient_checkpointing),
        compiled(model, performance.compile, trial),
    ):
        loop = _Loop(model, parameters, sampler, objective, settings, hooks)
        state = hooks.checkpoints.state if hooks.checkpoints is not None else None
        if state is not None:
            loop.load_state_dict(state)
        elif objective.critic is not None:
            loop.prepare(objective.critic.options.warmup_steps)
        history = loop.run()
        used = getattr(model, "is_gradient_checkpointing", False)
        return history, replace(
            performance, micro_batch_size=loop.micro.size, gradient_checkpointing=used
        )


class _Loop:
    """The optimizer's steps."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        sampler: Sampler,
        objective: Objective,
        settings: Settings,
        hooks: Hooks,
    ) -> None:
        config, _, performance = settings
        self.hooks, self.adversary = hooks, hooks.adversary
        self.model, self.parameters, self.sampler = model, parameters, sampler
        self.objective, self.config = objective, config
        self.peak = float(config.learning_rate)
        self.optimizer = make_optimizer(parameters, self.peak, performance.optimizer)
        self.autocast, self.scaler = precision(model, performance.mixed_precision)
        self.processes = sampler.processes
        size = performance.micro_batch(config.batch_size)
        self.micro = MicroBatches(size, "rows of each role", self._checkpoint)
        self.can_checkpoint = performance.gradient_checkpointing == "auto"
        # Processes that share a denoiser out must call it equally often.
        self.retries = not (performance.shard and self.processes.count > 1)
        self.history: list[StepRecord] = []
        self.smooth, self.seen = 0.0, 0.0  # an average of the last steps, and the weight in it
        self.upcoming: tuple[Draw, Batch] | None = None
        self.drawn = sampler.state_dict()  # before the upcoming rows were drawn

    def _checkpoint(self) -> bool:
        return self.can_checkpoint and start_checkpointing(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "history": [asdict(record) for record in self.history],
            "average": (self.smooth, self.seen),
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state_dict(),
            "sampler": self.drawn if self.upcoming else self.sampler.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as from that state."""
        self.history = [StepRecord(**record) for record in state["history"]]
        self.smooth, self.seen = state["average"]
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.sampler.load_state_dict(state["sampler"])

    @torch.no_grad()
    def prepare(self, steps: int) -> None:
        """Steps of the critic alone, and the scale of its pull."""
        for _ in range(steps):
            self.objective.prepare(*self._answered(self.sampler.draw()))
        self.objective.balance(*self._answered(self.sampler.draw()))

    def run(self) -> list[StepRecord]:
        """Steps until early stop."""
        steps, done, hooks = self.config.steps, len(self.history), self.hooks
        bar = tqdm(range(done, steps), "unlearn", steps, initial=done, disable=not hooks.progress)
        for step in bar:
            if self._is_enough():
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
            if hooks.callback is not None and self._wants_to_stop(hooks.callback(record)):
                break
        bar.close()
        return self.history

    def _wants_to_stop(self, answer: bool | None) -> bool:
        """Whether any process's callback says so, as all must stop together."""
        return any(self.processes.gather([answer is True]))

    def _is_enough(self) -> bool:
        return self.smooth < self.config.early_stop * self.objective.first * self.seen

    def _next(self) -> tuple[Draw, Batch]:
        """The rows of a step, and their first micro-batch."""
        self.drawn = self.sampler.state_dict()
        rows = self.sampler.draw()
        return rows, self.sampler.gather(rows.part(0, self.micro.size))

    def _step(self, step: int) -> StepRecord:
        config, scaler = self.config, self.scaler
        rate = self.peak * learning_rate_factor(step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures, kept = self._gradients(*(self.upcoming or self._next()))
        # Gathered and sent while the device works, unless rows may change before the next step.
        self.upcoming = None if self.adversary else self._next()
        self.processes.mean_([p.grad for p in self.parameters if p.grad is not None])
        if kept:
            self._operate(kept)
        scaler.unscale_(self.optimizer)
        largest = clip_gradients(self.parameters, config.max_grad_norm)
        # Read together, since every read waits for the device.
        self.processes.mean_([figures])
        read = torch.cat([figures, largest[None]]).tolist()
        total, divergence, mean_s, retained, peak_gradient = read
        record = StepRecord(step, total, divergence, mean_s, retained, rate)
        check_finite(record, peak_gradient, scaler.is_enabled())
        scaler.step(self.optimizer)  # leaves out steps whose gradients overflowed in float16
        scaler.update()
        return record

    def _gradients(self, rows: Draw, first: Batch) -> tuple[Tensor, list[list[Tensor]]]:
        """Gradients of a step, its figures (4,), and the retain gradients where those are apart.

        Rows go through the denoiser in micro-batches; a step that runs out of memory begins again
        with smaller ones.
        """
        critic = Once(self.objective.update_critic if self.objective.critic else None)

        def accumulated() -> tuple[Tensor, list[list[Tensor]]]:
            self.optimizer.zero_grad()
            size = self.micro.size
            if size < len(rows) and critic:
                critic(*self._answered(rows))  # which sees the whole step, as without parts
            figures: list[Tensor] = []
            kept: list[list[Tensor]] = []
            for start in range(0, len(rows), size):
                is_there = start == 0 and first.size == min(size, len(rows))
                batch = first if is_there else self.sampler.gather(rows.part(start, size))
                backward = self._together if batch.held is None else self._apart
                figures.append(backward(batch, batch.size / len(rows), kept, critic))
            return torch.stack(figures).sum(0), kept

        return self.micro.retry(accumulated) if self.retries else accumulated()

    @torch.no_grad()
    def _answered(self, rows: Draw) -> tuple[Tensor, Batch]:
        """What the student predicts of a draw's rows to unlearn, and these rows as a batch."""

        def asked(part: Sequence[Row]) -> Tensor:
            return answer_batch(self.model, self.sampler.batch(part, []), self.autocast)

        answers = self.micro.map(asked, rows.unlearn)
        return torch.cat(answers), self.sampler.batch(rows.unlearn, [])

    def _backward(self, value: Tensor, share: float) -> None:
        check_depends(value)
        self.scaler.scale(value * share).backward()
        if not self.history:
            warn_if_left_out(self.parameters)

    def _together(
        self, batch: Batch, share: float, kept: list[list[Tensor]], critic: Once
    ) -> Tensor:
        """Gradients of the whole objective, in one pass."""
        answer = answer_batch(self.model, batch, self.autocast)
        critic(answer[: batch.size], batch)
        value, figures = self.objective(answer, batch)
        self._backward(value, share)
        return figures * share

    def _apart(self, batch: Batch, share: float, kept: list[list[Tensor]], critic: Once) -> Tensor:
        """Gradients of the two parts: that of what is retained goes to `kept`."""
        assert batch.held is not None
        answer = answer_batch(self.model, batch, self.autocast)
        critic(answer, batch)
        value, figures = self.objective.unlearn(answer, batch)
        self._backward(value, share)
        own = [gradient_of(p) for p in self.parameters]
        self.optimizer.zero_grad()
        answer = answer_batch(self.model, batch.held, self.autocast)
        held = self.objective.retain(answer, batch.held)
        self._backward(held, share)
        kept.append([gradient_of(p) for p in self.parameters])
        for parameter, gradient in zip(self.parameters, own, strict=True):
            parameter.grad = gradient
        return share * self.objective.metrics(
            value.detach() + held.detach(), figures, held.detach()
        )

    def _operate(self, kept: list[list[Tensor]]) -> None:
        """Surgery on the whole step's gradients, which then are their sum."""
        retain = [torch.stack(parts).sum(0) for parts in zip(*kept, strict=True)]
        self.processes.mean_(retain)
        unlearn = [gradient_of(p) for p in self.parameters]
        project(unlearn, retain)
        torch._foreach_add_(unlearn, retain)
