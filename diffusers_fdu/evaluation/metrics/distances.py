"""Distances between two sets of pictures, by the features of any network, and between pairs.

    FID = |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    Heusel et al., arXiv 1706.08500
    KID = unbiased MMD^2, kernel (x.y / D + 1)^3                 Binkowski et al., arXiv 1801.01401
    pixel drift = root mean squared difference of the pixels of a pair, from 0 to 1

FID of few pictures is too large, the more so the more features there are: compare only sets
of one size. KID has no such bias, and may be below 0 by chance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

INSTALL = 'pip install "diffusers-fdu[evaluation]"'
BATCH = 64
RESAMPLES = 100

Extractor = Callable[[Tensor], Tensor]
"""From pictures (B, 3, H, W), uint8, to features (B, D)."""


@torch.no_grad()
def features(images: Sequence[Image], extractor: Extractor) -> Tensor:
    """Features of pictures of one size, (N, D), float64 on the CPU."""
    starts = range(0, len(images), BATCH)
    batches = (as_pixels(images[start : start + BATCH]) for start in starts)
    return torch.cat([extractor(pixels).double().cpu() for pixels in batches])


def as_pixels(images: Sequence[Image]) -> Tensor:
    """Pictures of one size as (N, 3, H, W), uint8."""
    arrays = [np.array(image.convert("RGB")) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def inception(features: int = 2048) -> Extractor:
    """The usual Inception network, whose weights torch-fidelity downloads.

    Args:
        features: the width of the layer: 64, 192, 768 or 2048.

    Raises:
        ImportError: if torch-fidelity is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric: Any = FrechetInceptionDistance(feature=features)
    except (ImportError, ModuleNotFoundError) as error:
        raise ImportError(f"Inception features need torch-fidelity: {INSTALL}") from error
    return metric.inception


def fid(a: Tensor, b: Tensor) -> float:
    """FID between two sets of features, (N, D) and (M, D); ValueError for less than two rows."""
    _check(a, b)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError(f"FID needs torchmetrics: {INSTALL}") from error
    metric: Any = FrechetInceptionDistance(feature=_IdentityExtractor(a.shape[1]))
    metric = metric.set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return max(metric.compute().item(), 0.0)


def kid(a: Tensor, b: Tensor) -> float:
    """KID between two sets of features, of as many rows of each; see `fid`."""
    _check(a, b)
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError as error:
        raise ImportError(f"KID needs torchmetrics: {INSTALL}") from error
    size = min(len(a), len(b))
    return poly_mmd(a[:size].double(), b[:size].double()).item()


def distance_interval(
    distance: Callable[[Tensor, Tensor], float],
    a: Tensor,
    b: Tensor,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % bootstrap interval of `fid` or `kid`; rows of the same index are drawn together.

    Pictures that are drawn twice move a distance as a whole, so the interval is that of the
    resamples around their own mean.
    """
    generator = torch.Generator().manual_seed(seed)
    resampled = []
    for _ in range(resamples):
        rows = torch.randint(len(a), (len(a),), generator=generator)
        resampled.append(distance(a[rows], b[rows]))
    offsets = np.percentile(resampled, (2.5, 97.5)) - np.mean(resampled)
    low, high = distance(a, b) + offsets
    return float(low), float(high)


class _IdentityExtractor(nn.Module):
    """The extractor of what are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(a: Tensor, b: Tensor) -> None:
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a distance needs two in each set")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of width {a.shape[1]} and {b.shape[1]} cannot be compared")


def pixel_drift(before: Sequence[Image], after: Sequence[Image]) -> Tensor:
    """Root mean squared difference of the pixels of each pair, from 0 to 1, (N,)."""
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} pictures before and {len(after)} after")
    pairs = zip(before, after, strict=True)
    drifts = [(as_pixels([a]).float() - as_pixels([b]).float()) / 255 for a, b in pairs]
    return torch.stack([drift.square().mean().sqrt() for drift in drifts])
