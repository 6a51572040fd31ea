r"""The loss of one batch: the mean profile of the distance between two predictions.

    s_b = sum(mask (pred - target)^2) / (sigma^2 n_b)      n_b elements under the mask, or 1
    loss = sum_b w_b phi(s_b) / B

See `divergences` for phi. Differences are taken in float32 whatever the inputs' dtype: a
bfloat16 subtraction has a noise floor near s = 6e-6 per element.

The plain PyTorch code here is the reference. On CUDA devices the fused kernel of
`triton.launch` takes its place, in float32 throughout.
"""

import warnings
from math import inf
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .divergence import Divergence
from .profiles import Generator, divergence
from .triton.profile_table import Table, profile_table

Reduction = Literal["mean", "sum"]
Kernel = Literal["auto", "triton", "compile", "eager"]
Parts = tuple[Tensor, Tensor]
Weights = Tensor | None  # of the elements, a mask, or of the samples

MEDIAN_S = 4.0
"""Where `sigma="auto"` puts the median initial s.

With s much below 1 every profile is a straight line and all divergences train alike; far above
8 the bounded ones have no slope left. 4 lies where the profiles differ.
"""


class DivergenceLoss(nn.Module):
    """An f-divergence between the reverse steps that two predictions imply.

        loss = mean_b phi(mean((pred_b - target_b)^2) / sigma^2)

    Args:
        f: name, `Divergence` or generator, see `divergence`.
        sigma: standard deviation of the reverse step in units of the prediction, which sets
            where on the profile a difference falls; "auto" takes it from the first batch, or
            from `calibrate`, so that the median s is 4, where the profiles differ.
        reduction: whether s has the "mean" or the "sum" over the elements of one sample.
        kernel: "eager" is the reference in PyTorch, "compile" the same under `torch.compile`,
            "triton" the fused kernel, "auto" the fused kernel on CUDA and else "eager". A kernel
            that cannot run falls back to "eager" with one warning that says why; float64
            predictions are always computed in "eager".

    Raises:
        ValueError: for an unknown divergence, reduction or kernel, or a sigma that is not
            positive.

    Example:
        >>> import torch
        >>> pred, target = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
        >>> DivergenceLoss("kl")(pred, target)
        tensor(0.5000)
        >>> DivergenceLoss("hellinger", sigma=0.5)(pred, target)
        tensor(0.3935)
    """

    def __init__(
        self,
        f: str | Divergence | Generator,
        sigma: float | Literal["auto"] = 1.0,
        reduction: Reduction = "mean",
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.divergence = divergence(f)
        if kernel not in get_args(Kernel):
            raise ValueError(f"unknown kernel {kernel!r}: choose {', '.join(get_args(Kernel))}")
        if reduction not in get_args(Reduction):
            raise ValueError(f"unknown reduction {reduction!r}: choose mean or sum")
        if sigma != "auto" and not (isinstance(sigma, int | float) and 0 < sigma < inf):
            raise ValueError(f"sigma must be a positive number or 'auto', got {sigma!r}")
        self.sigma, self.reduction, self.kernel = sigma, reduction, kernel
        self._compiled: Any = None
        self._table: Table | None = None

    def distance(self, pred: Tensor, target: Tensor, mask: Weights = None) -> Tensor:
        """Squared distance per sample before sigma, (B,) float32 (float64 for float64 inputs).

        Arguments and errors are those of `forward`.
        """
        _check_shapes(pred, target, mask)
        dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
        square = (pred.to(dtype) - target.to(dtype)).square()
        if mask is None:
            total = square.flatten(1).sum(1)
            count = torch.full_like(total, square[0].numel())
        else:
            weight = mask.to(dtype).expand_as(square)
            total = (square * weight).flatten(1).sum(1)
            count = weight.flatten(1).sum(1)
        if self.reduction == "sum":
            return total
        return total / torch.where(count > 0, count, 1)

    def calibrate(self, distance: Tensor) -> float:
        """Set sigma so that the median of these distances, (N,), is at s = 4; returns it.

        Raises:
            ValueError: if the median is 0, since the predictions are the same, or not finite.
        """
        self.sigma = sigma = calibrated_sigma(distance)
        return sigma

    def forward(
        self, pred: Tensor, target: Tensor, mask: Weights = None, weights: Weights = None
    ) -> Tensor:
        """Scalar loss.

        Args:
            pred: student's prediction, (B, C, H, W) or (B, N, C), any floating dtype.
            target: teacher's prediction, same shape; no gradient flows into it.
            mask: weights of the elements, broadcastable to the prediction: (B, 1, H, W) or
                (B, N, 1).
            weights: weight of each sample, (B,).

        Raises:
            ValueError: if the shapes do not match.
        """
        return self.with_distance(pred, target, mask, weights)[0]

    def with_distance(
        self, pred: Tensor, target: Tensor, mask: Weights = None, weights: Weights = None
    ) -> Parts:
        """The scalar loss, and s of every sample, (B,), without gradient; see `forward`."""
        _check_shapes(pred, target, mask, weights)
        target = target.detach()
        if self.sigma == "auto":
            self.calibrate(self.distance(pred, target, mask))
        kernel = self._choose_kernel(pred, target)
        if kernel == "eager":
            return self._eager(pred, target, mask, weights)
        compute: Any = self._fused if kernel == "triton" else self._under_compile
        if torch.compiler.is_compiling():
            return compute(pred, target, mask, weights)
        try:
            return compute(pred, target, mask, weights)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # If the reference fails too, the arguments are at fault and not the kernel.
            parts = self._eager(pred, target, mask, weights)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _broken.add(kernel)
            message = (
                f"the {kernel!r} loss kernel cannot run here, PyTorch takes its place: {reason}"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return parts

    def _choose_kernel(self, pred: Tensor, target: Tensor) -> str:
        """The kernel for these tensors, among those that have not failed."""
        kernel = self.kernel
        if kernel == "auto":
            kernel = "triton" if pred.is_cuda else "eager"
        if kernel in _broken or torch.float64 in (pred.dtype, target.dtype):
            return "eager"
        if kernel == "triton" and self.divergence.form[0] == "table":
            if self._table is None:
                d = self.divergence
                self._table = profile_table(d.phi, d.dphi, d.last, d.bound < inf)
            # A generator that is flat around t = 1 has phi = 0 there, and no logarithm.
            if not self._table.is_finite:
                return "eager"
            if self._table.rows.device != pred.device:
                self._table = self._table._replace(rows=self._table.rows.to(pred.device))
        return kernel

    def _eager(self, pred: Tensor, target: Tensor, mask: Weights, weights: Weights) -> Parts:
        s = self.distance(pred, target, mask) / float(self.sigma) ** 2
        phi = self.divergence.phi(s)
        if weights is not None:
            phi = phi * weights.to(phi.dtype)
        return phi.mean(), s.detach()

    def _under_compile(self, *args: Any) -> Parts:
        self._compiled = self._compiled or torch.compile(self._eager)
        return self._compiled(*args)

    def _fused(self, pred: Tensor, target: Tensor, mask: Weights, weights: Weights) -> Parts:
        from .triton.launch import fused_loss  # Triton is for Linux alone

        form, sigma, is_mean = self.divergence.form, float(self.sigma), self.reduction == "mean"
        return fused_loss(pred, target, mask, weights, form, self._table, sigma, is_mean)


def calibrated_sigma(distance: Tensor) -> float:
    """The sigma that puts the median of these distances, (N,), at s = `MEDIAN_S`.

    If the median is 0 or not finite, the two predictions are the same, which is a ValueError.
    """
    median = distance.detach().cpu().double().median().item()  # MPS has no float64
    if not 0 < median < inf:
        raise ValueError(
            f"cannot calibrate sigma: the median distance of the predictions is {median}"
        )
    return (median / MEDIAN_S) ** 0.5


_broken: set[str] = set()


def _check_shapes(pred: Tensor, target: Tensor, mask: Weights, weights: Weights = None) -> None:
    shape = tuple(pred.shape)
    if pred.shape != target.shape:
        raise ValueError(f"pred {shape} and target {tuple(target.shape)} differ in shape")
    if pred.numel() == 0:
        raise ValueError(f"pred {shape} is empty")
    if mask is not None:
        sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
        if mask.dim() > pred.dim() or any(m not in (1, p) for m, p in sizes):
            raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to {shape}")
    if weights is not None and weights.shape != pred.shape[:1]:
        raise ValueError(f"weights must have shape {shape[:1]}, got {tuple(weights.shape)}")
