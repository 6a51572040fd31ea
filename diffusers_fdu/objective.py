"""What training minimises on a batch: the pull to the anchor, and the hold on all else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .loss import DivergenceLoss


class Objective:
    """unlearn / (2 phi'(s_half)) + retain_weight * retain.

    The unlearning loss is in units of its slope at half the median initial difference, so that f
    changes the shape of the pull and not its strength against the retain loss. Rows to retain
    start at a difference of 0, where every profile has the shape of kl.

    Args:
        loss: calibrated: its sigma is a number.
        distance: initial distances of the rows to unlearn, before sigma, (N,).
        retain_weight: 0: no row is there to retain.

    Attributes:
        first: mean initial s.

    Raises:
        ValueError: if the divergence has no slope at this sigma.
    """

    def __init__(self, loss: DivergenceLoss, distance: Tensor, retain_weight: float) -> None:
        start = distance / float(loss.sigma) ** 2
        half = start.median().reshape(1) / 4  # s is a square
        slope = loss.divergence.dphi(half).item()
        if not 0 < slope < math.inf:
            raise ValueError(
                f"{loss.divergence.name} has slope {slope} at sigma={loss.sigma}, where the "
                f"median s is {start.median().item():.3g}: use sigma='auto', or another sigma"
            )
        self.first = start.mean().item()
        self._unlearn, self._unit, self._weight = loss, 2 * slope, retain_weight
        self._retain = DivergenceLoss("kl", loss.sigma, loss.reduction, loss.kernel)

    def __call__(self, answer: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The objective of a batch, and its parts.

        Args:
            answer: the student's predictions, (B, ...), the rows to unlearn first.
            target: the teacher's, of the same shape.
            size: how many rows are to unlearn.

        Returns:
            The objective, a scalar, and (objective, mean phi, mean s, mean retain s / 2), (4,),
            without gradient.
        """
        unlearn, s = self._unlearn.with_distance(answer[:size], target[:size])
        objective, retain = unlearn / self._unit, torch.zeros_like(unlearn)
        if self._weight:
            retain, _ = self._retain.with_distance(answer[size:], target[size:])
            objective = objective + self._weight * retain
        return objective, torch.stack([objective, unlearn, s.mean(), retain]).detach()
