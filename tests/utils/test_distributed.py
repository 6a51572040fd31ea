"""Two processes on gloo against one with twice the batch."""

from __future__ import annotations

import pytest
import torch
from launched import run
from together import main

from diffusers_fdu.utils.distributed import Processes

OPTIONS = {
    "plain": [],
    "surgery": ["surgery=true"],
    "accumulated": ["micro_batch_size=1"],
    # With more steps of the critic, rounding alone leads elsewhere.
    "variational": ['estimator={"warmup_steps": 2, "critic_steps": 2}'],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, bool], dict]:
    """Every training by one process, and by two with half the batch each."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for together in (False, True):
        size = f"batch_size={2 if together else 4}"
        paths = {name: folder / f"{i}-{together}.pt" for i, name in enumerate(OPTIONS)}
        arguments: list[str] = []
        for name, options in OPTIONS.items():
            arguments += [*(["--"] if arguments else []), str(paths[name]), size, *options]
        run(main, *arguments, together=together)
        found |= {(name, together): torch.load(path) for name, path in paths.items()}
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_do_what_one_does(runs, name) -> None:
    alone, both = runs[name, False], runs[name, True]
    assert alone["buffer"] == both["buffer"]
    for own, other in zip(alone["history"], both["history"], strict=True):
        assert own.keys() == other.keys()
        for key, value in own.items():
            assert other[key] == pytest.approx(value, rel=2e-3, abs=1e-6), key
    own, other = (
        torch.cat([w.flatten() for w in one["weights"].values()]) for one in (alone, both)
    )
    assert own.abs().max() > 0.02
    # Adam moves a weight by a whole step where its gradient is nothing but rounding, so weights
    # are not compared one by one.
    assert torch.dist(own, other) < 0.02 * own.norm()


def test_one_process_is_alone() -> None:
    alone = Processes()
    assert (alone.rank, alone.count, alone.is_main) == (0, 1, True)
    assert alone.share([1, 2, 3]) == alone.gather([1, 2, 3]) == [1, 2, 3]
    value = torch.ones(2)
    alone.mean_([value])
    assert torch.equal(value, torch.ones(2))


@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_parts_are_disjoint_and_whole(length) -> None:
    parts = []
    for rank in range(3):
        one = Processes()
        one.rank, one.count = rank, 3
        parts += one.share(range(length))
    assert parts == list(range(length))
