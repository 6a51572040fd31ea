"""What training minimises on a batch: the pull to the anchor, and the hold on all else."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data.replay_buffer import Row
from ..data.sampler import Batch, Sampler
from ..data.teacher import predict
from ..divergences.loss import DivergenceLoss, calibrated_sigma
from ..divergences.variational import VariationalLoss
from ..utils.micro_batches import MicroBatches

MEASURED, LEAST = 64, 16  # rows that set the scale: in all, and of one concept
STRONGEST = 1e4  # a critic without any slope must not be scaled to infinity


class Objective:
    """unlearn / (2 phi'(s_half)) + retain_weight * retain.

    Every concept has a sigma of its own, so that each starts at the same place of the profile.
    The unlearning loss is in units of its slope at half the median initial difference, so that f
    changes the shape of the pull and not its strength against the retain loss. Rows to retain
    start at a difference of 0, where every profile has the shape of kl; their sigma is the
    median of the concepts'.

    `distances` are those of the rows to unlearn from their targets at first, before sigma: one
    tensor (N,) for each concept. `first` is their mean s. The weight is 0 if no row is there to
    retain. A critic, the variational estimator, takes the place of the profile; see `balance`.

    Raises:
        ValueError: if the divergence has no slope at this sigma, or a sigma cannot be calibrated.
    """

    def __init__(
        self,
        loss: DivergenceLoss,
        distances: Sequence[Tensor],
        retain_weight: float,
        critic: VariationalLoss | None = None,
    ) -> None:
        self.critic, self._weight, self.distances = critic, retain_weight, list(distances)
        self.sigmas = [
            calibrated_sigma(d) if loss.sigma == "auto" else float(loss.sigma) for d in distances
        ]
        starts = [d / sigma**2 for d, sigma in zip(distances, self.sigmas, strict=True)]
        self.first = torch.stack([start.mean() for start in starts]).mean().item()
        device = distances[0].device
        # Of several concepts in one batch each row has the sigma of its own: answers and targets
        # are divided by it (`_scaled`), and the loss itself is left with a sigma of 1.
        is_one = len(starts) == 1
        sigma = self.sigmas[0] if is_one else 1.0
        self._sigmas = None if is_one else torch.tensor(self.sigmas, device=device)
        self._unlearn = DivergenceLoss(loss.divergence, sigma, loss.reduction, loss.kernel)
        middle = sorted(self.sigmas)[len(self.sigmas) // 2]
        self._retain = DivergenceLoss("kl", middle, loss.reduction, loss.kernel)
        # With a sigma given as a number, concepts start at different places of the profile, and
        # so in different units. The loss is divided by the mean unit, and a row's share makes
        # that its own: all concepts pull alike. Under "auto" the shares are 1.
        units = [2 * _slope(loss, start, s) for start, s in zip(starts, self.sigmas, strict=True)]
        self._unit = sum(units) / len(units)
        self._shares = torch.tensor([self._unit / unit for unit in units], device=device)
        self._force = 1.0  # of the critic, see `balance`

    def __call__(self, answer: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The objective of the student's predictions (B, ...) on a batch, and its `metrics`."""
        objective, metrics = self.unlearn(answer[: batch.size], batch)
        retain = torch.zeros_like(objective)
        if self._weight:
            retain = self.retain(answer[batch.size :], batch)
            objective = objective + retain
        return objective, self.metrics(objective, metrics, retain)

    def unlearn(self, answer: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The part of the rows to unlearn, predicted as (size, ...), and (mean phi, mean s)."""
        target, shares = batch.target[: batch.size], None
        if self.critic is not None:
            return self._from_critic(self.critic, answer, target, batch)
        if self._sigmas is not None:
            answer, target = self._scaled(answer, batch), self._scaled(target, batch)
            shares = self._shares[batch.concept]
        value, s = self._unlearn.with_distance(answer, target, weights=shares)
        return value / self._unit, torch.stack([value, s.mean()]).detach()

    def retain(self, answer: Tensor, batch: Batch) -> Tensor:
        """The part of the rows to retain, predicted as (B - size, ...): weight * mean s / 2."""
        value, _ = self._retain.with_distance(answer, batch.target[batch.size :])
        return self._weight * value

    def metrics(self, objective: Tensor, unlearn: Tensor, retain: Tensor) -> Tensor:
        """(objective, mean phi, mean s, mean retain s / 2), (4,), detached."""
        share = retain / self._weight if self._weight else retain
        return torch.stack([objective, *unlearn, share]).detach()

    def update_critic(self, answer: Tensor, batch: Batch, steps: int) -> None:
        """Steps of the critic alone, on predictions (size, ...) of the batch's rows to unlearn."""
        assert self.critic is not None
        for _ in range(steps):
            self.critic.update(answer, batch.target[: batch.size], batch.timestep[: batch.size])

    @torch.enable_grad()
    def balance(self, answer: Tensor, batch: Batch) -> None:
        """Scale the critic's pull to the one that the profile has on the same predictions.

        A critic's slope is in no unit that could be weighed against the retain loss. The
        predictions are those of rows to unlearn alone, before the first step.
        """
        assert self.critic is not None
        critic, self.critic = self.critic, None
        leaf = answer.detach().float().requires_grad_()
        (exact,) = torch.autograd.grad(self.unlearn(leaf, batch)[0], leaf)
        self.critic = critic
        bound = critic(leaf, batch.target, batch.timestep)
        (gradient,) = torch.autograd.grad(bound, leaf)
        tiny = torch.finfo(torch.float32).tiny
        squares = torch.stack([exact.square().sum(), gradient.square().sum()])
        critic.processes.mean_([squares])
        pull, slope = squares.sqrt()
        self._force = (pull / slope.clamp(min=tiny)).clamp(max=STRONGEST).item()

    def state_dict(self) -> dict[str, Any]:
        """What it was made with and has learnt since."""
        critic = {} if self.critic is None else self.critic.state_dict() | {"force": self._force}
        return {"distances": self.distances, **critic}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as from the state of an objective that was made with the same distances."""
        if self.critic is not None:
            self.critic.load_state_dict(state)
            self._force = state["force"]

    def _from_critic(
        self, critic: VariationalLoss, answer: Tensor, target: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        # A critic sees predictions as they are; sigmas only put the distance on its usual scale.
        bound = critic(answer, target, batch.timestep[: batch.size])
        distance = self._unlearn.distance(answer.detach(), target)
        sigmas = self.sigmas[0] if self._sigmas is None else self._sigmas[batch.concept]
        metrics = torch.stack([bound, (distance / sigmas**2).mean()]).detach()
        return self._force * bound, metrics

    def _scaled(self, value: Tensor, batch: Batch) -> Tensor:
        assert self._sigmas is not None
        sigmas = self._sigmas[batch.concept].reshape(-1, *[1] * (value.dim() - 1))
        return value.float() / sigmas


def _slope(loss: DivergenceLoss, start: Tensor, sigma: float) -> float:
    """Slope of the profile at half the median initial difference."""
    half = start.median().reshape(1) / 4  # s is a square
    slope = loss.divergence.dphi(half).item()
    if not 0 < slope < math.inf:
        raise ValueError(
            f"{loss.divergence.name} has slope {slope} at sigma={sigma}, where the "
            f"median s is {start.median().item():.3g}: use sigma='auto', or another sigma"
        )
    return slope


@torch.no_grad()
def initial_distances(
    model: nn.Module, sampler: Sampler, loss: DivergenceLoss, size: int
) -> list[Tensor]:
    """Distances, before sigma, of the frozen model to each concept's anchor: one (N,) for each.

    No new adapter may be on the model. Up to 64 rows in all are asked, `size` in one call.
    """
    distances = []
    for concept in range(sampler.concepts):
        rows = sampler.evenly_spaced(concept, max(LEAST, MEASURED // sampler.concepts))

        def distance(part: Sequence[Row]) -> Tensor:
            batch = sampler.batch(part, [])
            return loss.distance(answer_batch(model, batch), batch.target)

        distances.append(torch.cat(MicroBatches(size).map(distance, rows)))
    return distances


def answer_batch(
    model: nn.Module, batch: Batch, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> Tensor:
    """What the student predicts on a batch, where the targets are."""
    with autocast():
        answer = predict(model, batch.calls)
        return answer.to(batch.target.device)  # offloading moves the answer
