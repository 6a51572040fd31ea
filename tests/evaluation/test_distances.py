from __future__ import annotations

import numpy as np
import pytest
import torch
from scored import pictures

from diffusers_fdu.evaluation.metrics.distances import (
    distance_interval,
    features,
    fid,
    kid,
    pixel_drift,
)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """By eigenvalues of the product of the covariances."""
    a, b = a.double().numpy(), b.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(min=0)).sum()
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(ca) + np.trace(cb) - 2 * roots)


def mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased, term by term."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    own = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return own + other - 2 * cross


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    b = 0.5 + 1.3 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return a, b


def test_fid_is_the_frechet_distance(sets) -> None:
    assert fid(*sets) == pytest.approx(frechet(*sets), rel=1e-6)
    assert fid(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)


def test_kid_is_the_unbiased_mmd(sets) -> None:
    assert kid(*sets) == pytest.approx(mmd(*sets), rel=1e-5)


def test_intervals_of_distances_lie_around_them(sets) -> None:
    low, high = distance_interval(fid, *sets, resamples=40)
    assert low < fid(*sets) < high
    assert distance_interval(fid, *sets, resamples=40) == (low, high)


@pytest.mark.parametrize("measure", [fid, kid])
def test_too_few_pictures_are_refused(measure, sets) -> None:
    with pytest.raises(ValueError, match="two in each"):
        measure(sets[0][:1], sets[1])
    with pytest.raises(ValueError, match="width"):
        measure(sets[0], sets[1][:, :3])


def test_features_come_from_the_extractor_in_order() -> None:
    images = pictures(70)
    found = features(images, lambda pixels: pixels.float().mean((2, 3)))
    expected = np.stack([np.asarray(image).mean((0, 1)) for image in images])
    assert np.allclose(found.numpy(), expected, atol=1e-3)


def test_pixel_drift_is_the_rmse() -> None:
    before, after = pictures(3), pictures(3, seed=1)
    expected = [
        np.sqrt(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean()) / 255
        for a, b in zip(before, after, strict=True)
    ]
    assert np.allclose(pixel_drift(before, after).numpy(), expected, atol=1e-6)
    assert pixel_drift(before, before).abs().max() == 0


def test_drift_needs_pairs() -> None:
    with pytest.raises(ValueError, match="2 pictures before and 1 after"):
        pixel_drift(pictures(2), pictures(1))
