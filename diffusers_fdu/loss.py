r"""The loss of one batch: the mean profile of the distance between two predictions.

    s_b = sum(mask (pred - target)^2) / (sigma^2 n_b)      n_b elements under the mask, or 1
    loss = sum_b w_b phi(s_b) / B

See `divergences` for phi. Differences are taken in float32 whatever the inputs' dtype: a
bfloat16 subtraction has a noise floor near s = 6e-6 per element.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .divergences import Divergence, Generator, divergence

Reduction = Literal["mean", "sum"]

MEDIAN_S = 4.0
"""Where `sigma="auto"` puts the median initial s.

With s much below 1 every profile is a straight line and all divergences train alike; far above
8 the bounded ones have no slope left. 4 lies where the profiles differ.
"""


class DivergenceLoss(nn.Module):
    """An f-divergence between the reverse steps that two predictions imply.

    Args:
        f: name, `Divergence` or generator, see `divergence`.
        sigma: standard deviation of the reverse step in units of the prediction, which sets
            where on the profile a difference falls; "auto" takes it from the first batch, or
            from `calibrate`, so that the median s is `MEDIAN_S`.
        reduction: over the elements of one sample, "mean" or "sum".

    Raises:
        ValueError: for an unknown divergence or reduction, or a sigma that is not positive.
    """

    def __init__(
        self,
        f: str | Divergence | Generator,
        sigma: float | Literal["auto"] = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.divergence = divergence(f)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"unknown reduction {reduction!r}: choose mean or sum")
        if sigma != "auto" and not (isinstance(sigma, int | float) and 0 < sigma < float("inf")):
            raise ValueError(f"sigma must be a positive number or 'auto', got {sigma!r}")
        self.sigma = sigma
        self.reduction = reduction

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Squared distance per sample before sigma: (B,) float32 (float64 for float64 inputs).

        Args:
            pred: student's prediction, (B, C, H, W) or (B, N, C).
            target: teacher's prediction, same shape.
            mask: weights of the elements, broadcastable to the prediction: (B, 1, H, W) or
                (B, N, 1).

        Raises:
            ValueError: if the shapes do not match.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
        square = (pred.to(dtype) - target.to(dtype)).square()
        if mask is None:
            total = square.flatten(1).sum(1)
            count = torch.full_like(total, square[0].numel())
        else:
            try:
                weight = mask.to(dtype).expand_as(square)
            except RuntimeError as error:
                raise ValueError(
                    f"mask {tuple(mask.shape)} does not broadcast to {tuple(pred.shape)}"
                ) from error
            total = (square * weight).flatten(1).sum(1)
            count = weight.flatten(1).sum(1)
        if self.reduction == "sum":
            return total
        return total / torch.where(count > 0, count, 1)

    def calibrate(self, distance: Tensor) -> float:
        """Set sigma so that the median of these distances, (N,), falls at s = `MEDIAN_S`.

        Raises:
            ValueError: if the median is 0 or not finite: then the two predictions are the same.
        """
        median = distance.detach().double().median().item()
        if not 0 < median < float("inf"):
            raise ValueError(
                f"cannot calibrate sigma: the median distance of the predictions is {median}"
            )
        sigma = (median / MEDIAN_S) ** 0.5
        self.sigma = sigma
        return sigma

    def profile(self, distance: Tensor) -> Tensor:
        """Profile of distances (N,) under this sigma; calibrates sigma first if it is "auto"."""
        sigma = self.calibrate(distance) if self.sigma == "auto" else self.sigma
        return self.divergence.phi(distance / float(sigma) ** 2)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss.

        Args:
            pred: student's prediction, (B, C, H, W) or (B, N, C), any floating dtype.
            target: teacher's prediction, same shape; no gradient flows into it.
            mask: see `distance`.
            weights: weight of each sample, (B,).

        Raises:
            ValueError: if the shapes do not match.
        """
        phi = self.profile(self.distance(pred, target.detach(), mask))
        if weights is not None:
            if weights.shape != phi.shape:
                raise ValueError(
                    f"weights must have shape {tuple(phi.shape)}, got {tuple(weights.shape)}"
                )
            phi = phi * weights.to(phi.dtype)
        return phi.mean()
