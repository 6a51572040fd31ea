from __future__ import annotations

import math
import warnings

import pytest
import torch

from diffusers_fdu import DIVERGENCES, DivergenceLoss
from diffusers_fdu.divergences.loss import MEDIAN_S

SHAPES = [(3, 4, 5, 7), (2, 41, 6), (1, 1, 1, 1)]


def by_hand(pred, target, phi, sigma, mean, mask=None, weights=None) -> float:
    """Element by element, in Python floats."""
    total = 0.0
    for b in range(len(pred)):
        m = torch.ones_like(pred[b]) if mask is None else mask[b].expand_as(pred[b])
        square = sum(
            w * (p - t) ** 2
            for p, t, w in zip(
                pred[b].flatten().tolist(),
                target[b].flatten().tolist(),
                m.flatten().tolist(),
                strict=True,
            )
        )
        s = square / sigma**2 / (m.sum().item() if mean else 1)
        total += (1.0 if weights is None else weights[b].item()) * phi(s)
    return total / len(pred)


CLOSED = {
    "kl": lambda s: s / 2,
    "hellinger": lambda s: 1 - math.exp(-s / 8),
    "chi2": lambda s: math.exp(s) - 1,
    "tv": lambda s: math.erf(math.sqrt(s / 8)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_the_sum_by_hand(shape, name, reduction) -> None:
    torch.manual_seed(0)
    pred, target = torch.randn(2, *shape, dtype=torch.float64) * 0.3
    mask = (torch.rand(shape[0], 1, *shape[2:]) < 0.6).double()
    if len(shape) == 3:
        mask = (torch.rand(shape[0], shape[1], 1) < 0.6).double()
    mask.flatten(1)[:, 0] = 1
    weights = torch.rand(shape[0])
    loss = DivergenceLoss(name, sigma=1.7, reduction=reduction)
    mean = reduction == "mean"
    plain = by_hand(pred, target, CLOSED[name], 1.7, mean)
    full = by_hand(pred, target, CLOSED[name], 1.7, mean, mask, weights)
    assert loss(pred, target).item() == pytest.approx(plain, rel=1e-10)
    assert loss(pred, target, mask, weights).item() == pytest.approx(full, rel=1e-6)


def test_kl_is_half_the_mean_squared_error() -> None:
    pred, target = torch.randn(2, 4, 3, 8, 8)
    expected = torch.nn.functional.mse_loss(pred, target) / 2
    torch.testing.assert_close(DivergenceLoss("kl")(pred, target), expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_agrees_with_differences(name) -> None:
    torch.manual_seed(1)
    pred = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    loss = DivergenceLoss(name, sigma=0.8)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), pred, rtol=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    pred, target = torch.randn(2, 2, 3, 4, 4)
    pred.requires_grad_()
    target.requires_grad_()
    DivergenceLoss("js")(pred, target).backward()
    assert pred.grad is not None and target.grad is None


def test_bfloat16_inputs_are_subtracted_in_float32() -> None:
    pred, target = torch.randn(2, 8, 4, 16, 16, dtype=torch.bfloat16)
    expected = ((pred.double() - target.double()) ** 2).mean() / 2
    got = DivergenceLoss("kl")(pred, target)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_layouts_are_paired_by_index() -> None:
    pred, target = torch.randn(2, 2, 8, 6, 6)
    expected = DivergenceLoss("chi2", 2.0)(pred, target)
    channels_last = pred.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(DivergenceLoss("chi2", 2.0)(channels_last, target), expected)


def test_an_empty_mask_gives_zero_and_no_nan() -> None:
    pred = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = DivergenceLoss("tv")(pred, torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(pred.grad).all()


def test_auto_sigma_puts_the_median_at_the_reference() -> None:
    torch.manual_seed(2)
    pred, target = torch.randn(2, 9, 4, 8, 8)
    loss = DivergenceLoss("hellinger", sigma="auto")
    loss(pred, target)
    s = loss.distance(pred, target) / loss.sigma**2
    assert s.median().item() == pytest.approx(MEDIAN_S, rel=1e-5)
    kept = loss.sigma
    loss(pred * 3, target)
    assert loss.sigma == kept


def test_the_distance_comes_along_without_gradient() -> None:
    pred, target = torch.randn(2, 3, 4, 5, 5)
    pred.requires_grad_()
    worker = DivergenceLoss("hellinger", 0.6)
    loss, s = worker.with_distance(pred, target)
    assert torch.equal(loss, worker(pred, target)) and not s.requires_grad
    torch.testing.assert_close(s, ((pred - target) ** 2).mean((1, 2, 3)).detach() / 0.36)


@pytest.mark.parametrize("name", ["chi2", "js"])
def test_compiled_code_agrees_with_eager(name) -> None:
    pred, target, mask = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.rand(2, 1, 5, 5)
    results = []
    for kernel in ("eager", "compile"):
        student = pred.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of a fallback
            loss = DivergenceLoss(name, 1.5, kernel=kernel)(student, target, mask)
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"f": "helinger"}, "unknown divergence 'helinger'"),
        ({"f": "kl", "sigma": 0.0}, "sigma must be"),
        ({"f": "kl", "sigma": "automatic"}, "sigma must be"),
        ({"f": "kl", "reduction": "none"}, "unknown reduction 'none'"),
        ({"f": "kl", "kernel": "cuda"}, "unknown kernel 'cuda': choose auto, triton"),
    ],
)
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        DivergenceLoss(**arguments)


def test_a_generator_flat_around_one_is_left_to_pytorch() -> None:
    """E[(r - 1.5)+] by the Black-Scholes formula; its logarithm has no table near s = 0."""
    pytest.importorskip("triton", reason="the kernel needs Triton, which is for Linux")
    torch.manual_seed(0)
    pred, noise = torch.randn(2, 1, 3, 8, 8)
    worker = DivergenceLoss(lambda t: (t - 1.5).clamp(min=0), kernel="triton")
    loss, s = worker.with_distance(pred, pred + 1.5 * noise)
    root = s.item() ** 0.5
    high = math.log(1 / 1.5) / root + root / 2
    cdf = torch.distributions.Normal(0, 1).cdf
    expected = cdf(torch.tensor(high)) - 1.5 * cdf(torch.tensor(high - root))
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)


def test_bad_shapes() -> None:
    loss, pred = DivergenceLoss("kl"), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="differ in shape"):
        loss(pred, torch.randn(2, 3, 4, 5))
    with pytest.raises(ValueError, match="mask"):
        loss(pred, pred + 1, mask=torch.ones(2, 1, 5, 5))
    with pytest.raises(ValueError, match="weights"):
        loss(pred, pred + 1, weights=torch.ones(3))
    with pytest.raises(ValueError, match="median distance"):
        DivergenceLoss("kl", "auto")(pred, pred)
