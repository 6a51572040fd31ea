"""Whether it works on a GPU: the fused loss against float64, and "dog" unlearned in each dtype."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from diffusers_fdu import DIVERGENCES, DivergenceLoss, FDUnlearner, divergence
from diffusers_fdu.emoji.loading import load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.evaluation.emoji import cells, judge_cells, scores
from examples.benchmarks.lines import Results, Skipped

PROFILES = (*DIVERGENCES, "alpha=0.3", "alpha=3")
SHAPES = ((5, 3, 4, 41), (16, 4, 64, 64))
# Relative errors of the gradient, which is rounded to the prediction's dtype.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LOSS_TOLERANCE = 2e-4
ERASED, KEPT = 0.9, 0.9
NO_FALLBACK = (".*loss kernel cannot run", ".*the denoiser cannot be compiled")


def run(results: Results, tiny: bool = False) -> None:
    """Check the loss, then the whole."""
    with warnings.catch_warnings():
        for message in NO_FALLBACK:
            warnings.filterwarnings("error", message, RuntimeWarning)
        for dtype in TOLERANCE:
            check = f"loss, {name_of(dtype)}"
            with results.attempt("works", check=check):
                if results.device != "cuda":
                    raise Skipped("the fused loss is for a GPU")
                results.add("works", check=check, **loss_errors(dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check = f"dog to cat, {name_of(dtype)}"
            with results.attempt("works", check=check):
                if results.device != "cuda" and dtype == torch.float16:
                    raise Skipped("float16 is for a GPU")
                found = unlearned(results.device, dtype, tiny)
                results.add("works", check=check, **found)
                if not tiny and (found["ua"] < ERASED or found["ira"] < KEPT):
                    raise ValueError(f"UA {found['ua']:.2f}, IRA {found['ira']:.2f}")


def name_of(dtype: torch.dtype) -> str:
    """Without the module's name."""
    return str(dtype).removeprefix("torch.")


def loss_errors(dtype: torch.dtype) -> dict[str, Any]:
    """The largest errors of the fused loss over all profiles.

    Raises:
        ValueError: if one is larger than rounding explains.
    """
    found: list[tuple[float, float, str]] = []
    for f in PROFILES:
        for shape in SHAPES:
            torch.manual_seed(0)
            pred, noise = torch.randn(2, *shape, device="cuda")
            target = (pred + noise).to(dtype)
            value, own = both(DivergenceLoss(f, 0.9, kernel="triton"), pred.to(dtype), target)
            exact, wanted = reference(f, 0.9, pred.to(dtype).double(), target.double())
            error = (own.double() - wanted).norm() / wanted.norm()
            found.append((error.item(), abs(value / exact - 1).item(), f))
    gradient, name = max((g, f) for g, _, f in found)
    loss = max(error for _, error, _ in found)
    if not (gradient < TOLERANCE[dtype] and loss < LOSS_TOLERANCE):
        raise ValueError(f"errors of {loss:.1e}, of the gradient {gradient:.1e} with {name}")
    return {"worst": gradient, "worst_loss": loss, "profile": name, "profiles": len(PROFILES)}


def both(loss: Any, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient times the number of elements, which float16 can hold."""
    pred = pred.detach().requires_grad_()
    value = loss(pred, target)
    return value.detach().double(), torch.autograd.grad(pred.numel() * value, pred)[0]


def reference(f: str, sigma: float, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same in float64, from the formula."""
    pred = pred.detach().requires_grad_()
    s = (pred - target).square().flatten(1).mean(1) / sigma**2
    value = divergence(f).phi(s).mean()
    return value.detach(), torch.autograd.grad(pred.numel() * value, pred)[0]


def unlearned(device: str, dtype: torch.dtype, tiny: bool) -> dict[str, Any]:
    """Seconds of unlearning "dog" on the embedded model, and its scores."""
    pipe = load_emoji_pipeline(torch_dtype=dtype).to(device)
    few = {"trajectories": 2, "steps": 2} if tiny else {}
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, **few)
    begun = time.monotonic()
    worker.unlearn("dog", "cat")
    seconds = time.monotonic() - begun
    own = cells("dog")
    rest = [cell for cell in cells() if cell not in own]
    judge, steps = load_emoji_judge(), 2 if tiny else 25
    seeds = range(100, 101 if tiny else 110)
    verdicts = judge_cells(
        pipe, judge, own[: 1 if tiny else None], seeds, num_inference_steps=steps
    )
    verdicts += judge_cells(
        pipe, judge, rest[: 1 if tiny else None], range(100, 101), num_inference_steps=steps
    )
    times = worker.recipe["seconds"]
    return {
        "seconds": seconds,
        "record_s": times["record"],
        "train_s": times["train"],
        "steps": len(worker.history),
        **scores(verdicts, "dog")._asdict(),
    }
