"""The fused kernel, in Triton's interpreter where there is no GPU, against float64 PyTorch."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from diffusers_fdu import DIVERGENCES, DivergenceLoss, divergence
from diffusers_fdu.divergences import loss as loss_module

pytest.importorskip("triton", reason="the kernel needs Triton, which is for Linux")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With a GPU the kernel itself is tested, and `pytest -m gpu` means these tests, too.
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
NAMES = [*DIVERGENCES, "alpha=0.3", "alpha=3"]
# Triton's interpreter truncates where a device rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _no_fallback(monkeypatch) -> None:
    """A kernel that falls back would test the reference against itself."""
    monkeypatch.setattr(loss_module, "_broken", set())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DivergenceLoss, "_eager", None)
        yield


def exact(f, pred, target, sigma, reduction, mask=None, weights=None):
    """Loss, s and the prediction's gradient for an upstream gradient of 2.5, in float64."""
    pred = pred.detach().double().cpu().requires_grad_()
    square = (pred - target.double().cpu()) ** 2
    m = torch.ones_like(square)
    if mask is not None:
        m = mask.double().cpu().expand_as(square)
    count = m.flatten(1).sum(1) if reduction == "mean" else torch.ones(len(pred)).double()
    s = (square * m).flatten(1).sum(1) / count.clamp(min=1e-300) / sigma**2
    w = 1.0 if weights is None else weights.double().cpu()
    loss = (w * divergence(f).phi(s)).mean()
    (2.5 * loss).backward()
    return loss.detach(), s.detach(), pred.grad


def fused(f, pred, target, sigma, reduction, mask=None, weights=None):
    pred = pred.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    worker = DivergenceLoss(f, sigma, reduction, kernel="triton")
    loss, s = worker.with_distance(pred, target, mask, weights)
    assert loss.dtype == s.dtype == torch.float32 and not s.requires_grad
    (2.5 * loss).backward()
    assert pred.grad.dtype == pred.dtype and pred.grad.shape == pred.shape
    return loss.detach().cpu(), s.cpu(), pred.grad.cpu()


def check(got, expected, dtype=torch.float32, slack=1.0) -> None:
    rtol = TOLERANCE[torch.float32] * slack
    assert got[0].item() == pytest.approx(expected[0].item(), rel=rtol)
    torch.testing.assert_close(got[1].double(), expected[1], rtol=rtol, atol=0)
    scale = expected[2].abs().max().item()
    tolerance = TOLERANCE[dtype] * slack
    torch.testing.assert_close(
        got[2].double(), expected[2], rtol=tolerance, atol=tolerance * 1e-2 * scale
    )


def pair(shape, dtype=torch.float32, other=None, scale=1.0):
    torch.manual_seed(0)
    pred, noise = torch.randn(2, *shape, device=DEVICE)
    return pred.to(dtype), (pred + scale * noise).to(other or dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_every_profile(name, reduction) -> None:
    pred, target = pair((5, 3, 4, 41))
    target[1] = pred[1]  # a sample that has arrived
    target[2] = pred[2] + 1e-3 * (target[2] - pred[2])
    target[3] = pred[3] + 2 * (target[3] - pred[3])
    sigma = 0.7 if reduction == "mean" else 12.0
    got, expected = (run(name, pred, target, sigma, reduction) for run in (fused, exact))
    assert got[2][1].abs().max() == 0
    check(got, expected, slack=60 if name in ("chi2", "alpha=3") else 3)


@pytest.mark.parametrize("name", [lambda t: (t - 1) ** 2 * (t + 1) / t, lambda t: t * t.log()])
def test_a_generator_of_ones_own(name) -> None:
    pred, target = pair((6, 2, 7, 5), scale=1.5)
    check(fused(name, pred, target, 1.0, "mean"), exact(name, pred, target, 1.0, "mean"), slack=20)


@pytest.mark.parametrize("size", [1, 41, 401, 1271, 1024, 5000])
@pytest.mark.parametrize("batch", [1, 3, 70])
def test_odd_sizes(size, batch) -> None:
    pred, target = pair((batch, size, 1))
    check(fused("js", pred, target, 1.0, "mean"), exact("js", pred, target, 1.0, "mean"), slack=3)


def test_more_elements_than_one_split_holds() -> None:
    pred, target = pair((200, 3, 1271))  # 512 // 200 programs a sample
    got, expected = (run("tv", pred, target, 1.0, "mean") for run in (fused, exact))
    check(got, expected, slack=3)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_may_differ(dtype, other) -> None:
    pred, target = pair((3, 4, 9, 11), dtype, other)
    got, expected = (run("hellinger", pred, target, 0.9, "mean") for run in (fused, exact))
    check(got, expected, dtype, slack=3)


MASKS = [
    (3, 1, 6, 7),
    (3, 4, 6, 7),
    (1, 1, 6, 7),
    (3, 4, 1, 1),
    (3, 1, 1, 1),
    (3, 1, 6, 1),
    (3, 4, 1, 7),
    (6, 7),
    (1,),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mask_shape", MASKS)
def test_masks_and_weights(mask_shape, channels_last) -> None:
    pred, target = pair((3, 4, 6, 7))
    if channels_last:
        pred = pred.contiguous(memory_format=torch.channels_last)
    mask = torch.rand(mask_shape, device=DEVICE)
    weights = torch.tensor([0.5, 0.0, 2.0], device=DEVICE)
    got, expected = (
        run("chi2", pred, target, 1.3, "mean", mask, weights) for run in (fused, exact)
    )
    check(got, expected, slack=5)


def test_mask_over_tokens_and_an_empty_one() -> None:
    pred, target = pair((2, 13, 6))
    mask = (torch.arange(13, device=DEVICE) < 5).float()[None, :, None].repeat(2, 1, 1)
    mask[1] = 0
    got, expected = (run("le_cam", pred, target, 1.0, "mean", mask) for run in (fused, exact))
    check(got, expected, slack=3)
    assert got[2][1].abs().max() == 0 and got[2][0, 5:].abs().max() == 0


def strided(x):
    return torch.stack([x, x], dim=-1)[..., 0]


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        strided,
    ],
    ids=["channels_last", "transposed", "strided"],
)
@pytest.mark.parametrize("which", ["pred", "target", "both"])
def test_layouts(layout, which) -> None:
    pred, target = pair((2, 8, 6, 5))
    expected = exact("js", pred, target, 1.0, "mean")
    if which in ("pred", "both"):
        pred = layout(pred)
    if which in ("target", "both"):
        target = layout(target)
    check(fused("js", pred, target, 1.0, "mean"), expected, slack=3)


def reference(f, pred, target):
    """Float32 in PyTorch, which has the tangents of float32."""
    pred = pred.detach().cpu().requires_grad_()
    s = ((pred - target.cpu()) ** 2).flatten(1).mean(1)
    (2.5 * divergence(f).phi(s).mean()).backward()
    return divergence(f).phi(s).mean().item(), pred.grad


def cubed(t):
    return t**3


@pytest.mark.parametrize("scale", [3, 6, 10, 30, 100])
@pytest.mark.parametrize("f", ["chi2", "alpha=3", "alpha=-1", "hellinger", "js", cubed])
def test_past_the_cap_a_profile_is_its_tangent(f, scale) -> None:
    pred, target = pair((4, 3, 8, 8), scale=scale)
    loss, _, grad = fused(f, pred, target, 1.0, "mean")
    expected, expected_grad = reference(f, pred, target)
    assert loss.item() == pytest.approx(expected, rel=2e-4)
    size = expected_grad.abs().max().item()
    torch.testing.assert_close(grad, expected_grad, rtol=5e-4, atol=1e-6 * size)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(name, value) -> None:
    """Where float32 PyTorch is NaN the kernel is, and where it is finite so is the kernel."""
    pred, target = pair((3, 2, 4, 4))
    pred[1, 0, 0, 0] = value
    expected, _ = reference(name, pred, target)
    loss = fused(name, pred, target, 1.0, "mean")[0].item()
    assert loss == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert not (math.isnan(value) and math.isfinite(loss))


def test_a_bad_call_does_not_condemn_the_kernel() -> None:
    pred, target = pair((2, 3))
    worker = DivergenceLoss("kl", kernel="triton")
    with pytest.raises(ValueError, match="is empty"):
        worker(pred[:0], target[:0])
    with pytest.raises(ValueError, match="weights"):
        worker(pred, target, weights=torch.ones(3))
    assert not loss_module._broken and torch.isfinite(worker(pred, target))


def test_far_samples_are_finite_and_pull() -> None:
    pred, target = pair((4, 3, 8, 8), scale=20.0)
    for name in ("chi2", "alpha=3", "hellinger", "tv", "js"):
        loss, _, grad = fused(name, pred, target, 1.0, "mean")
        assert torch.isfinite(loss) and torch.isfinite(grad).all()
        assert (grad.abs().max() > 1e20) == (name in ("chi2", "alpha=3"))


def test_the_same_twice() -> None:
    pred, target = pair((7, 4, 33, 31))
    a, b = (fused("js", pred, target, 1.0, "mean") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_no_second_derivative() -> None:
    pred, target = pair((2, 3, 4))
    pred.requires_grad_()
    loss = DivergenceLoss("kl", kernel="triton")(pred, target)
    (grad,) = torch.autograd.grad(loss, pred, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["hellinger", "js"])
def test_one_graph_under_compile(name) -> None:
    pred, target = pair((3, 4, 6, 7))
    mask = torch.rand(3, 1, 6, 7, device=DEVICE)
    worker = DivergenceLoss(name, 0.8, kernel="triton")
    compiled = torch.compile(worker, fullgraph=True, backend="aot_eager")
    a, b = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    one, two = worker(a, target, mask), compiled(b, target, mask)
    (2.5 * one).backward()
    (2.5 * two).backward()
    torch.testing.assert_close(two, one)
    torch.testing.assert_close(b.grad, a.grad)


def test_operators_pass_pytorchs_own_checks() -> None:
    from diffusers_fdu.divergences.triton import launch as operators

    pred, target = pair((2, 3, 4, 5))
    mask, weights = torch.rand(2, 1, 4, 5, device=DEVICE), torch.rand(2, device=DEVICE)
    numbers = [-0.125, -1.0, 0.0, 1.0, 0.0, 60.0]
    forward = torch.ops.diffusers_fdu.divergence_forward.default
    arguments = (pred, target, mask, weights, None, 1, numbers, 1.0, True)
    torch.library.opcheck(forward, arguments)
    slope, upstream = forward(*arguments)[2], torch.ones((), device=DEVICE)
    backward = torch.ops.diffusers_fdu.divergence_backward.default
    torch.library.opcheck(backward, (pred, target, mask, slope, upstream))
    assert operators.KINDS["exponential"] == 1


FALLBACK = """
import sys, warnings
{set_up}
import torch
from diffusers_fdu import DivergenceLoss
pred, target = torch.randn(2, 2, 3, 4)
pred.requires_grad_()
worker = DivergenceLoss("js", kernel="triton")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    losses = [worker(pred, target) for _ in range(3)]
    losses[0].backward()
ours = [str(w.message) for w in caught if w.category is RuntimeWarning]
assert len(ours) == 1 and "PyTorch takes its place" in ours[0], ours
assert losses[2] == DivergenceLoss("js", kernel="eager")(pred, target)
print(ours[0])
"""


@pytest.mark.parametrize(
    ("set_up", "reason"),
    [("sys.modules['triton'] = None", "triton"), ("", "driver")],
    ids=["missing", "broken"],
)
def test_a_kernel_that_cannot_run_warns_once(set_up, reason) -> None:
    """Without an interpreter, Triton needs a device."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TRITON_INTERPRET", None)
    script = FALLBACK.format(set_up=set_up)
    result = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert reason in result.stdout
