from __future__ import annotations

import pytest
import torch

from diffusers_fdu.pipelines.denoiser import TimestepConvention, find_timestep_convention

RUN = torch.tensor([999.0, 601.5, 20.0])

GIVEN = {
    "as it is": (lambda t: t, TimestepConvention()),
    "a share": (lambda t: t / 1000, TimestepConvention(is_unit=True)),
    "what is left": (lambda t: 1 - t / 1000, TimestepConvention(is_unit=True, is_reversed=True)),
    "of each token": (lambda t: torch.stack([t, 0 * t, t]), TimestepConvention()),
}


@pytest.mark.parametrize(("give", "clock"), GIVEN.values(), ids=GIVEN)
def test_a_denoisers_time_is_read(give, clock) -> None:
    given = [give(t) for t in RUN]
    assert find_timestep_convention("timestep", 1000, [(given[0], given[-1])]) == clock
    for time, value in zip(RUN, given, strict=True):
        assert clock.to_scheduler(value).item() == pytest.approx(time.item(), abs=1e-3)


def test_the_last_steps_of_a_thousand_are_no_shares() -> None:
    runs = [(torch.tensor(500.0), torch.tensor(0.4)), (torch.tensor(0.9), torch.tensor(0.1))]
    assert not find_timestep_convention("t", 1000, runs).is_unit
