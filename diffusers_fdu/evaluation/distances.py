"""Distances between two sets of pictures, by the features of any network.

    FID = |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    Heusel et al., arXiv 1706.08500
    KID = unbiased MMD^2, kernel (x.y / D + 1)^3                 Binkowski et al., arXiv 1801.01401

FID of few pictures is too large, the more so the more features there are: compare only sets
of one size. KID has no such bias, and may be below 0 by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

INSTALL = 'pip install "diffusers-fdu[evaluation]"'
BATCH = 64
SUBSETS = 50

Extractor = Callable[[Tensor], Tensor]
"""From pictures (B, 3, H, W), uint8, to features (B, D)."""


class Kernel(NamedTuple):
    """A mean and its spread over subsets."""

    mean: float
    std: float


@torch.no_grad()
def features(images: Sequence[Image], extractor: Extractor) -> Tensor:
    """Features of pictures of one size, (N, D), float64 on the CPU."""
    found = [
        extractor(as_pixels(images[start : start + BATCH])).double().cpu()
        for start in range(0, len(images), BATCH)
    ]
    return torch.cat(found)


def as_pixels(images: Sequence[Image]) -> Tensor:
    """Pictures of one size as (N, 3, H, W), uint8."""
    arrays = [np.array(image.convert("RGB")) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def inception(features: int = 2048) -> Extractor:
    """The usual features: an Inception network's, whose weights torch-fidelity downloads.

    Args:
        features: width of the layer: 64, 192, 768 or 2048.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric: Any = FrechetInceptionDistance(feature=features)
    except (ImportError, ModuleNotFoundError) as error:
        raise ImportError(f"Inception features need torch-fidelity: {INSTALL}") from error
    return metric.inception


def fid(a: Tensor, b: Tensor) -> float:
    """FID between two sets of features, (N, D) and (M, D).

    Raises:
        ValueError: if a set has fewer than two pictures, or their widths differ.
        ImportError: if torchmetrics is not installed.
    """
    _check(a, b)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError(f"FID needs torchmetrics: {INSTALL}") from error
    metric: Any = FrechetInceptionDistance(feature=_Given(a.shape[1]))
    metric = metric.set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return max(float(metric.compute()), 0.0)


def kid(a: Tensor, b: Tensor, subset: int | None = None, seed: int = 0) -> Kernel:
    """KID between two sets of features, (N, D) and (M, D).

    Args:
        a: features of one set.
        b: features of the other.
        subset: pictures of a random subset, of which there are `SUBSETS`; None: half of the
            smaller set, at most 1000.
        seed: of the subsets.

    Raises:
        ValueError: see `fid`; if a subset is larger than a set.
        ImportError: if torchmetrics is not installed.
    """
    _check(a, b)
    least = min(len(a), len(b))
    size = subset or min(1000, max(2, least // 2))
    if not 2 <= size <= least:
        raise ValueError(f"subset must be between 2 and {least} pictures, got {size}")
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ImportError(f"KID needs torchmetrics: {INSTALL}") from error
    metric: Any = KernelInceptionDistance(
        feature=_Given(a.shape[1]), subsets=SUBSETS, subset_size=size
    )
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        mean, std = metric.compute()
    return Kernel(float(mean), float(std))


class _Given(nn.Module):
    """An extractor of what are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, given: Tensor) -> Tensor:
        return given


def _check(a: Tensor, b: Tensor) -> None:
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a distance needs two in each set")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of width {a.shape[1]} and {b.shape[1]} cannot be compared")
