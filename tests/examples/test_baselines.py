"""The baselines do what their papers' equations say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffusers_fdu import Concept, DivergenceLoss
from examples.baselines import concept_ablation, esd, fdmu_full, uce
from examples.baselines.common import CROSS, TRAINED, Bench

DOG = Concept("dog", "cat", prompts=("a {}", "a {} emoji"))


@pytest.fixture
def bench(pipe) -> Bench:
    own = Bench(pipe, DOG, 0)
    with torch.no_grad():  # a student that has moved
        for i, parameter in enumerate(own.parameters()):
            generator = torch.Generator().manual_seed(i)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return own


def parts(bench: Bench) -> tuple[torch.Tensor, list[str], list[str]]:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    return latents, ["a dog", "a dog emoji"], ["a cat", "a cat emoji"]


def gradients(bench: Bench, loss: torch.Tensor) -> list[torch.Tensor]:
    weights = [p for layer in bench.layers() for p in layer.parameters()]
    return list(torch.autograd.grad(loss, weights))


def by_hand(bench: Bench, factor: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """The student's Jacobian times factor(s) 2 (student - teacher) / elements, mean over rows.

    Args:
        bench: with the generator where the loss found it.
        factor: of the mean squared difference of each row.
    """
    latents, targets, anchors = parts(bench)
    x, t, _ = bench.noised(latents)
    student = bench.pipe.unet(x, t, bench.text(targets)).sample
    with torch.no_grad():
        apart = student - bench.teacher(x, t, bench.text(anchors)).sample
        s = apart.square().flatten(1).mean(1)
        upstream = factor(s).reshape(-1, 1, 1, 1) * 2 * apart / apart.numel()
    weights = [p for layer in bench.layers() for p in layer.parameters()]
    return list(torch.autograd.grad(student, weights, upstream))


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    assert any(gradient.abs().max() > 0 for gradient in expected)
    size = max(gradient.abs().max() for gradient in expected)
    return all((a - b).abs().max() < 1e-4 * size for a, b in zip(found, expected, strict=True))


def test_concept_ablations_gradient_is_its_equations(bench) -> None:
    state = bench.generator.get_state()
    loss = concept_ablation.ablation_loss(bench, *parts(bench))
    bench.generator.set_state(state)
    assert same(gradients(bench, loss), by_hand(bench, torch.ones_like))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_hellingers_gradient_fades_as_its_profile_says(bench, sigma: float) -> None:
    """phi = 1 - exp(-s / 8), so that phi' = exp(-s / 8) / 8."""
    state = bench.generator.get_state()
    criterion = DivergenceLoss("hellinger", sigma)
    loss = fdmu_full.divergence_loss(bench, criterion, *parts(bench))
    bench.generator.set_state(state)
    expected = by_hand(bench, lambda d: torch.exp(-d / sigma**2 / 8) / 8 / sigma**2)
    assert same(gradients(bench, loss), expected)


def test_concept_ablation_is_its_equation(bench) -> None:
    latents, targets, anchors = parts(bench)
    state = bench.generator.get_state()
    found = concept_ablation.ablation_loss(bench, latents, targets, anchors)
    bench.generator.set_state(state)
    x, t, _ = bench.noised(latents)
    with torch.no_grad():
        student = bench.pipe.unet(x, t, bench.text(targets)).sample
        teacher = bench.teacher(x, t, bench.text(anchors)).sample
    expected = ((student - teacher) ** 2).sum() / student.numel()
    assert torch.allclose(found, expected)
    assert found.requires_grad


def test_the_regulariser_is_the_denoising_loss(bench) -> None:
    latents, _, anchors = parts(bench)
    state = bench.generator.get_state()
    found = concept_ablation.regulariser(bench, latents, anchors)
    bench.generator.set_state(state)
    noise = torch.randn(latents.shape, generator=bench.generator)
    t = torch.randint(1000, (2,), generator=bench.generator)
    alpha = bench.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    x = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.no_grad():
        answer = bench.pipe.unet(x, t, bench.text(anchors)).sample
    assert torch.allclose(found, (answer - noise).square().mean(), atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_esd_is_equation_7(bench, eta: float) -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([300, 300])
    found = esd.guided_away(bench, x, t, ["a dog"] * 2, eta)
    with torch.no_grad():
        empty = bench.teacher(x, t, bench.text(["", ""])).sample
        own = bench.teacher(x, t, bench.text(["a dog"] * 2)).sample
    assert torch.allclose(found, (1 + eta) * empty - eta * own, atol=1e-5)


def test_esd_draws_as_the_pipeline_does(pipe) -> None:
    """All steps of the student's own picture are those of the pipeline, from the same noise."""
    own = Bench(pipe, DOG, 0)
    state = own.generator.get_state()
    with pytest.raises(IndexError):  # after the last step there is no next timestep
        esd.partly_drawn(own, ["a dog"], 3, 3)
    own.generator.set_state(state)
    x, t = esd.partly_drawn(own, ["a dog"], 3, 2)
    own.generator.set_state(state)
    noise = torch.randn(1, 4, 8, 8, generator=own.generator)
    seen: dict[int, torch.Tensor] = {}

    def keep(pipe, step, timestep, values):
        seen[step] = values["latents"].clone()
        return {}

    pipe(
        "a dog",
        latents=noise,
        num_inference_steps=3,
        guidance_scale=esd.START_GUIDANCE,
        callback_on_step_end=keep,
        output_type="latent",
    )
    assert torch.allclose(x, seen[1], atol=1e-4)
    assert t.item() == pipe.scheduler.timesteps[2].item()


def test_uce_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight, old, new, kept = random(5, 6), random(4, 6), random(4, 6), random(7, 6)
    p, ridge = 0.3, 0.2
    found = uce.edited(weight, old, new, kept, p, ridge).requires_grad_()
    value = ((old @ found.T - new @ weight.T) ** 2).sum()
    value = value + p * ((kept @ found.T - kept @ weight.T) ** 2).sum()
    value = value + ridge * ((found - weight) ** 2).sum()
    (gradient,) = torch.autograd.grad(value, found)
    assert gradient.abs().max() < 1e-9
    # And by least squares of the stacked rows.
    rows = torch.cat([old, p**0.5 * kept, ridge**0.5 * torch.eye(6, dtype=torch.float64)])
    goal = torch.cat([new @ weight.T, p**0.5 * kept @ weight.T, ridge**0.5 * weight.T])
    assert torch.allclose(found, torch.linalg.lstsq(rows, goal).solution.T, atol=1e-9)


def test_uce_moves_the_targets_keys_to_the_anchors(pipe) -> None:
    own = Bench(pipe, DOG, 0)
    old, new = uce.differing(own, ["a dog"], ["a cat"])
    layer = own.layers()[0]
    with torch.no_grad():
        wanted, before = layer(new), layer(old)
        uce.forget(pipe, DOG, 0, preserve=0.0, ridge=1e-4, prompts=2)
        after = layer(old)
    # More tokens than numbers in each, so that not all can be met.
    assert (after - wanted).norm() < 0.2 * (before - wanted).norm()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_fdmu_with_kl_is_concept_ablation_but_for_a_factor(bench, sigma: float) -> None:
    latents, targets, anchors = parts(bench)
    state = bench.generator.get_state()
    mse = concept_ablation.ablation_loss(bench, latents, targets, anchors)
    bench.generator.set_state(state)
    found = fdmu_full.divergence_loss(
        bench, DivergenceLoss("kl", sigma), latents, targets, anchors
    )
    assert torch.allclose(found, mse / (2 * sigma**2), rtol=1e-4)


def test_fdmu_with_hellinger_is_its_closed_form(bench) -> None:
    latents, targets, anchors = parts(bench)
    state = bench.generator.get_state()
    found = fdmu_full.divergence_loss(
        bench, DivergenceLoss("hellinger", 0.5), latents, targets, anchors
    )
    bench.generator.set_state(state)
    x, t, _ = bench.noised(latents)
    with torch.no_grad():
        student = bench.pipe.unet(x, t, bench.text(targets)).sample
        teacher = bench.teacher(x, t, bench.text(anchors)).sample
    s = (student - teacher).square().flatten(1).mean(1) / 0.25
    assert torch.allclose(found, (1 - torch.exp(-s / 8)).mean(), rtol=1e-4)


FORGET = {
    "concept ablation": lambda pipe, seed: concept_ablation.forget(
        pipe, DOG, seed, 2, 2, pictures=3
    ),
    "ESD-x": lambda pipe, seed: esd.forget(pipe, DOG, seed, 2, 2, draw_steps=3),
    "ESD, strict": lambda pipe, seed: esd.forget(
        pipe, DOG, seed, 2, 2, draw_steps=3, trained=TRAINED
    ),
    "UCE": lambda pipe, seed: uce.forget(pipe, DOG, seed, prompts=2),
    "f-DMU": lambda pipe, seed: fdmu_full.forget(pipe, DOG, seed, steps=2, batch=2, pictures=3),
}


@pytest.mark.parametrize("method", FORGET)
def test_only_what_is_trained_moves_and_a_seed_repeats(method: str) -> None:
    from conftest import build_tiny_pipe

    trained = CROSS if method == "ESD-x" else TRAINED
    runs = []
    for _ in range(2):
        pipe = build_tiny_pipe()
        before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        cost = FORGET[method](pipe, 0)
        after = pipe.unet.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all(name.rsplit(".", 1)[0].endswith(trained) for name in moved)
        for suffix in trained:
            assert any(name.rsplit(".", 1)[0].endswith(suffix) for name in moved), suffix
        sizes = [v.numel() for n, v in after.items() if n.rsplit(".", 1)[0].endswith(trained)]
        assert cost.bytes == 2 * sum(sizes)
        runs.append(after)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
