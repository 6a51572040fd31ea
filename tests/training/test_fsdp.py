"""A sharded denoiser in two processes on gloo, against a whole one in one process."""

from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch
from families import FAMILIES
from launched import run
from together import main
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from diffusers_fdu import FDUnlearner
from diffusers_fdu.config import PerformanceConfig
from diffusers_fdu.training.acceleration import check_supported
from diffusers_fdu.training.fsdp import blocks, sharded

FLUX = 'family="flux"'


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    """The same training by one process, and by two with half the batch each."""
    folder = tmp_path_factory.mktemp("runs")
    paths = {name: str(folder / f"{name}.pt") for name in ("alone", "sharded", "streamed")}
    alone = [paths["alone"], FLUX, "batch_size=4"]
    two = [FLUX, "batch_size=2", "shard=true"]
    streamed = ['hooks="sequential"', "gradient_checkpointing=true"]
    both = [paths["sharded"], *two, "--", paths["streamed"], *two, *streamed]
    for together, arguments in ((False, alone), (True, both)):
        assert "FSDP2-wrapped" not in run(main, *arguments, together=together)
    return {name: torch.load(path) for name, path in paths.items()}


@pytest.mark.parametrize("name", ["sharded", "streamed"])
def test_the_result_is_that_of_one_process(runs, name) -> None:
    """`together.py` checks that the pipe has its whole weights again."""
    alone, both = runs["alone"], runs[name]
    losses = [[record["loss"] for record in run["history"]] for run in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    for key, value in alone["weights"].items():
        torch.testing.assert_close(both["weights"][key], value, rtol=0, atol=2e-4)
    assert max(value.abs().max() for value in alone["weights"].values()) > 0.02


@pytest.mark.parametrize("name", ["sharded", "streamed"])
def test_each_process_holds_half_of_what_is_frozen(runs, name) -> None:
    parts = runs[name]["parts"]
    frozen = [part for key, part in parts.items() if "lora_" not in key]
    trained = [part for key, part in parts.items() if "lora_" in key]
    assert frozen and trained
    assert all(is_sharded and own == total / 2 for is_sharded, own, total in frozen)
    assert all(not is_sharded and own == total for is_sharded, own, total in trained)
    assert not any(is_sharded for is_sharded, _, _ in runs["alone"]["parts"].values())


@pytest.mark.parametrize("name", FAMILIES)
def test_all_families_have_blocks(name) -> None:
    pipe = FAMILIES[name].build()
    found = blocks(getattr(pipe, "unet", None) or pipe.transformer)
    assert len(found) == len(set(found)) > 0


@pytest.mark.parametrize("kind", ["Flux", "Flux2", "QwenImage", "SD3", "ZImage"])
def test_blocks_hold_nearly_all_of_a_large_denoiser(kind) -> None:
    """The rest is brought together for the whole call."""
    with torch.device("meta"):
        model = getattr(diffusers, f"{kind}Transformer2DModel")()
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks(model)]
    whole = sum(p.numel() for p in model.parameters())
    assert sum(sizes) > 0.95 * whole and max(sizes) < 0.1 * whole


def test_blocks_may_be_named() -> None:
    model = FAMILIES["flux"].build().transformer
    assert blocks(model, ["FluxTransformerBlock"]) == [*model.transformer_blocks]
    with pytest.raises(ValueError, match="no blocks of the classes Other: use shard=False"):
        blocks(model, ["Other"])
    with pytest.raises(ValueError, match="Linear has no blocks to shard"):
        blocks(nn.Linear(2, 2))


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_model_is_as_before_whatever_is_raised(pipe, group) -> None:
    """And it can be sharded again."""
    model = pipe.unet.requires_grad_(False)
    trained = [model.conv_out.weight.requires_grad_(True)]
    before = [(p, p.clone()) for p in model.parameters()]
    kinds = [(type(m), sorted(vars(m))) for m in model.modules()]
    parts = (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 16))
    expected = model(*parts)[0].detach()
    for _ in range(2):
        with (
            pytest.raises(KeyboardInterrupt),
            sharded(model, trained, torch.device("cpu"), True) as asked,
        ):
            assert isinstance(asked.down_blocks[0].resnets[0].conv1.weight, DTensor)
            assert asked.conv_out.weight is trained[0]
            answer = asked(*parts)[0]
            assert torch.equal(answer, expected)
            answer.sum().backward()
            raise KeyboardInterrupt
        assert trained[0].grad is not None
        assert all(p is own for p, (own, _) in zip(model.parameters(), before, strict=True))
        assert all(torch.equal(p, value) for p, value in before)
        assert [(type(m), sorted(vars(m))) for m in model.modules()] == kinds
        assert torch.equal(model(*parts)[0], expected)


def test_alone_nothing_is_sharded(pipe) -> None:
    with sharded(pipe.unet, [], torch.device("cpu"), False) as model:
        assert model is pipe.unet


def test_what_cannot_be_sharded_is_refused(pipe) -> None:
    with pytest.raises(ValueError, match="shard=True needs data_parallel=True"):
        FDUnlearner(pipe, shard=True)
    with pytest.raises(ValueError, match="do not go together"):
        FDUnlearner(pipe, shard=True, data_parallel=True, compile=True)
    with pytest.raises(ValueError, match="shard must be True or False"):
        FDUnlearner(pipe, shard="yes")
    pipe.unet.hf_quantizer = object()
    with pytest.raises(ValueError, match="quantised denoiser cannot be sharded"):
        check_supported(PerformanceConfig(shard=True, data_parallel=True), pipe.unet)
