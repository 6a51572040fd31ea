from __future__ import annotations

import pytest
import torch

from diffusers_fdu import DivergenceLoss, Variational, divergence
from diffusers_fdu.data.sampler import Batch
from diffusers_fdu.divergences.loss import MEDIAN_S
from diffusers_fdu.divergences.variational import VariationalLoss
from diffusers_fdu.training.objective import Objective

SHAPE = (4, 3, 3)


def batch(concepts=(0, 0, 0), retained=2) -> tuple[torch.Tensor, Batch]:
    torch.manual_seed(0)
    rows = len(concepts) + retained
    answer = torch.randn(rows, *SHAPE, requires_grad=True)
    target = torch.randn(rows, *SHAPE)
    time = torch.linspace(0, 900, rows)
    return answer, Batch({}, target, len(concepts), torch.tensor(concepts), time)


def distances(answer, batch) -> torch.Tensor:
    return (answer - batch.target).square().flatten(1).mean(1).detach()


@pytest.mark.parametrize("f", ["kl", "hellinger", "chi2"])
def test_one_concept_by_hand(f) -> None:
    answer, rows = batch()
    start = torch.tensor([1.0, 2.0, 4.0])
    objective = Objective(DivergenceLoss(f, "auto"), [start], 3.0)
    sigma = (2.0 / MEDIAN_S) ** 0.5
    assert objective.sigmas == [pytest.approx(sigma)]
    assert objective.first == pytest.approx((start.mean() / sigma**2).item())
    s = distances(answer, rows) / sigma**2
    phi, unit = divergence(f).phi(s[:3]), 2 * divergence(f).dphi(torch.tensor([1.0])).item()
    retain = s[3:].mean() / 2
    value, figures = objective(answer, rows)
    expected = phi.mean() / unit + 3 * retain
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    expected_figures = [expected, phi.mean(), s[:3].mean(), retain]
    assert figures.tolist() == pytest.approx([v.item() for v in expected_figures], rel=1e-5)


def test_every_concept_has_its_own_sigma() -> None:
    concepts = (0, 1, 0, 1)
    answer, rows = batch(concepts)
    starts = [torch.tensor([1.0]), torch.tensor([16.0])]
    objective = Objective(DivergenceLoss("hellinger", "auto"), starts, 2.0)
    assert objective.sigmas == pytest.approx([0.5, 2.0])
    sigma = torch.tensor([0.5, 2.0, 0.5, 2.0])
    d = distances(answer, rows)
    phi = divergence("hellinger").phi(d[:4] / sigma**2)
    unit = 2 * divergence("hellinger").dphi(torch.tensor([1.0])).item()
    expected = phi.mean() / unit + 2 * (d[4:] / 2.0**2).mean() / 2
    value, figures = objective(answer, rows)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert figures[2].item() == pytest.approx((d[:4] / sigma**2).mean().item(), rel=1e-5)
    value.backward()
    gradient = answer.grad.clone()
    answer.grad = None
    s = (answer - rows.target).square().flatten(1).mean(1)[:4] / sigma**2
    (divergence("hellinger").phi(s).mean() / unit).backward()
    torch.testing.assert_close(gradient[:4], answer.grad[:4], rtol=1e-4, atol=1e-7)


def test_with_one_sigma_every_concept_pulls_alike_at_half_its_start() -> None:
    """A concept that starts far out on the profile of hellinger has a smaller unit."""
    starts = [torch.tensor([4.0]), torch.tensor([64.0])]
    objective = Objective(DivergenceLoss("hellinger", 1.0), starts, 0.0)
    slope = divergence("hellinger").dphi
    units = [2 * slope(torch.tensor([start.item() / 4])).item() for start in starts]
    answer, rows = batch((0, 1), retained=0)
    phi = divergence("hellinger").phi(distances(answer, rows))
    expected = (phi[0] / units[0] + phi[1] / units[1]) / 2
    assert objective(answer, rows)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_parts_add_up() -> None:
    answer, rows = batch()
    objective = Objective(DivergenceLoss("js", "auto"), [torch.tensor([4.0])], 2.0)
    unlearn, figures = objective.unlearn(answer[:3], rows)
    retain = objective.retain(answer[3:], rows)
    whole, parts = objective(answer, rows)
    torch.testing.assert_close(unlearn + retain, whole)
    torch.testing.assert_close(objective.metrics(whole, figures, retain), parts)


def test_a_critic_takes_the_profiles_place() -> None:
    answer, rows = batch()
    critic = VariationalLoss("hellinger", SHAPE, Variational(critic_steps=2))
    objective = Objective(DivergenceLoss("hellinger", "auto"), [torch.tensor([4.0])], 0.0, critic)
    before = [p.clone() for p in critic.critic.parameters()]
    value, figures = objective(answer, rows)
    asked = list(zip(before, critic.critic.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in asked)  # it learns when it is told to
    value.backward()
    assert answer.grad[:3].abs().sum() > 0 and not answer.grad[3:].any()
    s = distances(answer, rows)[:3] / objective.sigmas[0] ** 2
    assert figures[2].item() == pytest.approx(s.mean().item(), rel=1e-5)
    objective.update_critic(answer[:3], rows, steps=2)
    assert not all(torch.equal(a, b) for a, b in asked)


@pytest.mark.parametrize("concepts", [(0, 0, 0), (0, 1, 0)])
def test_a_critic_is_balanced_to_the_profiles_pull(concepts) -> None:
    answer, rows = batch(concepts, retained=0)
    starts = [torch.tensor([4.0]), torch.tensor([9.0])][: 1 + max(concepts)]
    exact = Objective(DivergenceLoss("js", "auto"), starts, 1.0)
    (wanted,) = torch.autograd.grad(exact.unlearn(answer, rows)[0], answer)
    critic = VariationalLoss("js", SHAPE)
    critic.critic.eval()  # its power iterations would go on
    objective = Objective(DivergenceLoss("js", "auto"), starts, 1.0, critic)
    objective.balance(answer, rows)
    assert objective.critic is critic
    critic.options = Variational(learning_rate=1e-12)
    critic.optimizer.param_groups[0]["lr"] = 0.0
    (found,) = torch.autograd.grad(objective.unlearn(answer, rows)[0], answer)
    assert found.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-3)


def test_a_critic_sees_several_concepts_as_they_are() -> None:
    answer, rows = batch((0, 1, 0))
    critic = VariationalLoss("kl", SHAPE)
    starts = [torch.tensor([1.0]), torch.tensor([16.0])]
    objective = Objective(DivergenceLoss("kl", "auto"), starts, 0.0, critic)
    _, figures = objective(answer, rows)
    s = distances(answer, rows)[:3] / torch.tensor([0.5, 2.0, 0.5]) ** 2
    assert figures[2].item() == pytest.approx(s.mean().item(), rel=1e-5)


def test_no_slope_left() -> None:
    with pytest.raises(
        ValueError, match="hellinger has slope 0.0 at sigma=0.001.*use sigma='auto'"
    ):
        Objective(DivergenceLoss("hellinger", 1e-3), [torch.tensor([4.0])], 0.0)
