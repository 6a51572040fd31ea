from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_fdu.training.truncated_svd import OVERSAMPLE, STEPS, truncated_svd

RANK = 8
SHAPES = [(300, 500), (500, 300)]
SEPARATED = {
    "a gap": lambda i: np.where(i < RANK, 1.0, 0.5) * (i + 1) ** -0.1,
    "geometric": lambda i: 0.5**i,
    "a power": lambda i: 1 / (i + 1),
}


def made(rows, columns, values, seed=0):
    """A matrix with given singular values."""
    rng = np.random.default_rng(seed)
    size = min(rows, columns)
    left = np.linalg.qr(rng.standard_normal((rows, size)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, size)))[0]
    return (left * values(np.arange(size))) @ right.T


def best(matrix, rank=RANK):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank], values


def product(left, values, right):
    return ((left * values[..., None, :]) @ right).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", SEPARATED.values(), ids=SEPARATED)
def test_equals_the_full_decomposition(shape, values) -> None:
    assert min(shape) > 2 * (RANK + OVERSAMPLE) * (STEPS + 1)  # or all of it is decomposed
    matrices = [made(*shape, values, seed) for seed in range(3)]
    found = truncated_svd(torch.from_numpy(np.stack(matrices)), RANK)
    for i, matrix in enumerate(matrices):
        expected, singular = best(matrix)
        error = np.linalg.norm(product(*(part[i] for part in found)) - expected)
        assert error <= 1e-6 * np.linalg.norm(expected)
        np.testing.assert_allclose(found[1][i].numpy(), singular[:RANK], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flat", ["noise", "equal values"])
def test_is_nearly_the_best_where_nothing_stands_out(shape, flat) -> None:
    matrix = made(*shape, lambda i: np.ones(len(i)))
    if flat == "noise":
        matrix = np.random.default_rng(0).standard_normal(shape)
    _, values = best(matrix)
    error = np.linalg.norm(product(*truncated_svd(torch.from_numpy(matrix), RANK)) - matrix)
    assert error <= 1.001 * np.linalg.norm(values[RANK:])


@pytest.mark.parametrize("shape", [*SHAPES, (5, 9), (9, 5)])
def test_vectors_are_orthonormal_and_values_descend(shape) -> None:
    rank = min(RANK, *shape)
    matrix = torch.from_numpy(made(*shape, lambda i: 0.5 ** (i // 2)))
    left, values, right = truncated_svd(matrix, RANK)
    assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye)
    torch.testing.assert_close(right @ right.T, eye)
    assert (values.diff() <= 0).all() and (values > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_less_rank_is_found_whole(shape) -> None:
    matrix = made(*shape, lambda i: np.where(i < 3, 2.0, 0.0))
    found = truncated_svd(torch.from_numpy(matrix), RANK)
    np.testing.assert_allclose(product(*found), matrix, atol=1e-12)


def test_is_deterministic_and_leaves_the_global_generator() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 500)))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = truncated_svd(matrix, RANK)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, truncated_svd(matrix, RANK)))
