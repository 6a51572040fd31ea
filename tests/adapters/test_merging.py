from __future__ import annotations

import json

import pytest
import torch
from conftest import build_tiny_pipe, latents
from made import both, made, update

from diffusers_fdu import (
    FDUnlearner,
    conflicts,
    load_unlearned,
    merge,
    retrain,
    stack,
)
from diffusers_fdu.adapters.merging.methods import ortho, truncated
from diffusers_fdu.adapters.merging.parts import Update
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter

METHODS = ("concat", "svd", "ties", "dare", "ortho")


@pytest.fixture
def folders(tmp_path) -> list:
    return both(tmp_path)


def total(folders, weights) -> dict[str, torch.Tensor]:
    """The weighted sum of updates, from the definition of LoRA."""
    found: dict[str, torch.Tensor] = {}
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in update(folder, weight).items():
            found[name] = found.get(name, 0) + delta
    return found


def relative(a: dict, b: dict) -> float:
    off = sum((a[name] - b[name]).square().sum() for name in b)
    return (off / sum(value.square().sum() for value in b.values())).sqrt().item()


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_merged_is_the_sum(pipe, folders, tmp_path, method) -> None:
    merged = merge(folders, [1.0, 0.5], method=method)
    assert merged.rank == 5 and merged.error < 1e-6
    folder = merged.save(tmp_path / "whole")
    assert relative(update(folder), total(folders, [1.0, 0.5])) < 1e-6
    side_by_side = build_tiny_pipe()
    stack(side_by_side, folders, [1.0, 0.5])
    load_unlearned(pipe, folder)
    assert list(pipe.unet.peft_config) == ["forget-forget-dog-forget-cat"]
    torch.testing.assert_close(latents(pipe), latents(side_by_side), atol=5e-5, rtol=0)


def test_plain_diffusers_loads_it(pipe, folders, tmp_path) -> None:
    side_by_side = build_tiny_pipe()
    stack(side_by_side, folders)
    pipe.load_lora_weights(str(merge(folders).save(tmp_path / "whole")), adapter_name="whole")
    torch.testing.assert_close(latents(pipe), latents(side_by_side), atol=5e-5, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_is_the_nearest_of_its_rank(folders, tmp_path, rank) -> None:
    """Against numpy's dense decomposition, and the error that is reported."""
    merged = merge(folders, [1.0, -0.5], method="svd", rank=rank)
    expected, off, whole = {}, 0.0, 0.0
    for name, delta in total(folders, [1.0, -0.5]).items():
        u, s, v = torch.linalg.svd(delta)
        expected[name] = u[:, :rank] * s[:rank] @ v[:rank]
        own = (s[rank:].square().sum() / s.square().sum()).sqrt().item()
        assert merged.errors[name] == pytest.approx(own, abs=1e-6)
        off, whole = off + s[rank:].square().sum().item(), whole + s.square().sum().item()
    assert relative(update(merged.save(tmp_path / "whole")), expected) < 1e-5
    assert merged.error == pytest.approx((off / whole) ** 0.5, abs=1e-6)


def test_ties_keeps_the_large_and_the_majority(tmp_path) -> None:
    """One layer by hand: Yadav et al., with PEFT's conventions."""
    folders = [made(tmp_path / str(i), i, 4, ["attn2.to_k"]) for i in range(3)]
    weights, density = [1.0, -0.7, 0.4], 0.25
    merged = merge(folders, weights, method="ties", density=density)
    for name, found in update(merged.save(tmp_path / "whole")).items():
        kept = []
        for folder, weight in zip(folders, weights, strict=True):
            delta = update(folder, weight)[name]
            least = delta.abs().flatten().kthvalue(delta.numel() - int(density * delta.numel()))
            kept.append(delta * (delta.abs() > least.values))
        values = torch.stack(kept)
        agree = (values.sign() == values.sum(0).sign()) & (values != 0)
        expected = (values * agree).sum(0) / agree.sum(0).clamp(min=1)
        u, s, v = torch.linalg.svd(expected)
        expected = u[:, :12] * s[:12] @ v[:12]
        assert relative({name: found}, {name: expected}) < 1e-5


def test_dare_is_the_sum_on_average_and_by_its_seed(folders) -> None:
    states = [merge(folders, method="dare", seed=seed).state for seed in (0, 0, 1)]
    name = next(iter(states[0]))
    assert states[0][name].equal(states[1][name]) and not states[0][name].equal(states[2][name])
    name = name.replace("lora_A", "lora_{}")
    whole = total(folders, [1.0, 1.0])[name.split(".lora_")[0]]
    drawn = [merge(folders, method="dare", density=0.9, seed=seed).state for seed in range(40)]
    mean = sum(d[name.format("B")] @ d[name.format("A")] for d in drawn) / len(drawn)
    assert (mean - whole).norm() < 0.25 * whole.norm()


def test_ortho_does_on_each_input_what_its_adapter_does() -> None:
    """Where inputs differ the answer is one adapter's, without the other's; the sum's is not."""
    rows = torch.linalg.qr(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))[0].T
    tilted = 0.6 * rows[0] + 0.8 * rows[4]
    first = Update(rows[:2], torch.randn(7, 2, generator=torch.Generator().manual_seed(1)))
    second = Update(
        torch.stack([tilted, rows[3]]),
        torch.randn(7, 2, generator=torch.Generator().manual_seed(2)),
    )
    whole = ortho([first, second])
    for own in (first, second):
        answer, wanted = whole.up @ whole.down @ own.down.T, own.up @ own.down @ own.down.T
        assert (answer - wanted).norm() < 0.03 * wanted.norm()
    plain = first.up @ first.down + second.up @ second.down
    answer, wanted = plain @ first.down.T, first.up @ first.down @ first.down.T
    assert (answer - wanted).norm() > 0.3 * wanted.norm()
    alone = ortho([first])
    torch.testing.assert_close(alone.up @ alone.down, first.up @ first.down)
    same = ortho([first, first._replace(up=-first.up)])
    assert (same.up @ same.down).norm() < 1e-4


def test_directions_of_no_effect_are_not_read(tmp_path, folders) -> None:
    """A merged file has such; they must not count as another's inputs."""
    padded = merge(folders, [1.0, 0.0]).save(tmp_path / "padded")
    plain = conflicts(folders).inputs[1][0]
    assert conflicts([padded, folders[1]]).inputs[1][0] == pytest.approx(plain, abs=1e-4)
    alone = merge([padded, folders[1]], [0.0, 1.0], method="ortho").save(tmp_path / "alone")
    own = update(folders[1])
    found = {name: update(alone).get(name, 0) for name in own}
    assert relative(found, own) < 1e-4


def test_a_merge_that_is_nothing_like_the_sum_is_warned_of(folders) -> None:
    with pytest.warns(RuntimeWarning, match="'dare' does not suit them"):
        merge(folders, method="dare", density=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_are_those_of_the_file(folders, tmp_path, dtype) -> None:
    for folder in folders:
        found = read_adapter(folder)
        state = {key: value.to(dtype) for key, value in found.state.items()}
        write_adapter(folder, "diffusers", "unet", state, found.config)
    merged = merge(folders, [0.7, -0.3])
    whole = update(merged.save(tmp_path / "whole"))
    assert merged.error == pytest.approx(relative(whole, total(folders, [0.7, -0.3])), rel=1e-3)
    assert merged.error > 1e-5
    assert {value.dtype for value in merged.state.values()} == {dtype}


def test_truncated_of_a_rank_that_it_has_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Update(torch.randn(3, 9, generator=generator), torch.randn(5, 3, generator=generator))
    same = truncated(one, 3)
    torch.testing.assert_close(same.up @ same.down, one.up @ one.down)
    torch.testing.assert_close(same.up.norm(), same.down.norm())


def test_the_recipe_tells_the_parts(folders, tmp_path) -> None:
    (folders[0] / "recipe.json").write_text(
        json.dumps({"adapter_name": "no-dog", "concepts": [{"target": "dog"}], "pipeline": "P"})
    )
    folder = merge(folders, [1.0, 0.5], method="ties", rank=3, density=0.3).save(tmp_path / "all")
    facts = json.loads((folder / "recipe.json").read_text())
    assert [part["adapter_name"] for part in facts["merged"]] == ["no-dog", "forget-cat"]
    assert facts["method"] == "ties" and facts["density"] == 0.3 and facts["rank"] == 3
    assert facts["weights"] == [1.0, 0.5] and facts["adapter_name"] == "forget-dog"
    assert 0 < facts["error"] < 2 and "pipeline" not in facts
    with pytest.raises(ValueError, match="was merged"):
        retrain(build_tiny_pipe(), facts)


@pytest.mark.parametrize("method", METHODS)
def test_merging_twice_gives_the_same_bytes(folders, tmp_path, method) -> None:
    state = torch.random.get_rng_state()
    names = [merge(folders, method=method).save(tmp_path / name) for name in "ab"]
    files = [(name / "pytorch_lora_weights.safetensors").read_bytes() for name in names]
    assert files[0] == files[1] and torch.random.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sum"}, "unknown method 'sum': choose concat, svd"),
        ({"rank": 2}, "with concat the ranks add up"),
        ({"method": "svd", "rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"method": "ties", "density": 0.0}, "density must lie in"),
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"weights": [1.0, float("inf")]}, "weights must be finite"),
        ({"refine": True}, "pass pipe="),
    ],
)
def test_bad_arguments(folders, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        merge(folders, **arguments)


def test_adapters_of_different_models_are_not_merged(folders, tmp_path) -> None:
    other = tmp_path / "other"
    for change in (
        {"component": "transformer_2"},
        {"pipeline": "FluxPipeline"},
    ):
        made(other, 0, 2, ["attn2.to_k"])
        (other / "recipe.json").write_text(json.dumps(change))
        (folders[0] / "recipe.json").write_text('{"pipeline": "StableDiffusionPipeline"}')
        with pytest.raises(ValueError, match="is for"):
            merge([folders[0], other])
        (other / "recipe.json").unlink()
        (other / "pytorch_lora_weights.safetensors").unlink()
        other.rmdir()
    with pytest.raises(TypeError, match="a list"):
        merge(str(folders[0]))
    with pytest.raises(ValueError, match="no adapter"):
        merge([])


def test_conflicts_tell_shared_inputs_and_direction(tmp_path, folders) -> None:
    opposite = made(tmp_path / "opposite", 0, *(2, ["attn2.to_k"]))
    found = read_adapter(opposite)
    state = {k: -v if "lora_B" in k else v for k, v in found.state.items()}
    write_adapter(opposite, "diffusers", "unet", state, found.config)
    result = conflicts([folders[0], opposite, folders[1]])
    assert result.names == ["forget-dog", "opposite", "forget-cat"]
    assert result.inputs[0][1] == pytest.approx(1.0) and result.alignment[0][1] == pytest.approx(
        -1
    )
    assert result.inputs[0][0] == 1.0 and result.alignment[2][2] == pytest.approx(1.0)
    shares = []  # by dense projections
    a, b = update(folders[0]), update(folders[1])
    for name in a:
        basis = torch.linalg.svd(b[name])[2][:3]
        shares.append((a[name] @ basis.T).square().sum() / a[name].square().sum())
    assert result.inputs[0][2] == pytest.approx(sum(shares).item() / len(shares), abs=1e-6)
    product = sum((a[n] * b[n]).sum() for n in a)
    norms = [sum(v.square().sum() for v in u.values()).sqrt() for u in (a, b)]
    assert result.alignment[0][2] == pytest.approx(
        (product / norms[0] / norms[1]).item(), abs=1e-6
    )
    assert result.worst()[:2] in (("forget-dog", "opposite"), ("opposite", "forget-dog"))
    assert "| forget-dog |  | 100% |" in result.table()
    with pytest.raises(ValueError, match="two or more"):
        conflicts(folders[:1])


TINY = {"trajectories": 2, "steps": 2, "batch_size": 2, "retain": ["a tree"], "rank": 2}
RUN = {"num_inference_steps": 2}


@pytest.fixture
def trained(tmp_path) -> list:
    found = []
    for target, anchor in (("dog", "cat"), ("apple", "tree")):
        worker = FDUnlearner(build_tiny_pipe(), RUN, False, **TINY)
        worker.unlearn(target, anchor)
        found.append(worker.save(tmp_path / target))
    return found


def test_refining_replays_every_part(pipe, trained, tmp_path) -> None:
    before, keys = latents(pipe), list(pipe.unet.state_dict())
    options = {"steps": 3, "trajectories": 2, "batch_size": 2, "retain": ["a tree"]}
    plain = merge(trained, method="svd", rank=3)
    refined = merge(
        trained, method="svd", rank=3, refine={**options, "learning_rate": 1e-2}, pipe=pipe,
        progress=False,
    )  # fmt: skip
    assert list(pipe.unet.state_dict()) == keys and latents(pipe).equal(before)
    assert refined.config == plain.config and refined.state.keys() == plain.state.keys()
    assert any(not refined.state[key].equal(plain.state[key]) for key in plain.state)
    facts = refined.recipe["refined"]
    assert facts["steps_done"] == 3 and facts["f"] == "hellinger" and len(facts["sigma"]) == 2
    # Almost no step: it goes on from the merged weights, not from anything else.
    still = merge(
        trained, method="svd", rank=3, refine={**options, "learning_rate": 1e-9}, pipe=pipe,
        progress=False,
    )  # fmt: skip
    for key, value in plain.state.items():
        torch.testing.assert_close(still.state[key], value, atol=1e-6, rtol=0)
    folder = refined.save(tmp_path / "refined")
    load_unlearned(pipe, folder)
    assert not latents(pipe).equal(before)


def test_refining_needs_recipes_and_the_same_pipe(pipe, folders, trained) -> None:
    with pytest.raises(ValueError, match="'forget-dog' has no recipe of its training"):
        merge(folders, refine=True, pipe=pipe)
    load_unlearned(pipe, trained[0], "other")
    with pytest.raises(ValueError, match="load and set those first"):
        merge(trained, refine=True, pipe=pipe)
    assert list(pipe.unet.peft_config) == ["other"]


def test_going_on_from_an_adapter(pipe, trained, folders) -> None:
    """With almost no step the result is the adapter; its rank and alpha are taken over."""
    options = {**TINY, "steps": 1, "learning_rate": 1e-9, "rank": 7}
    worker = FDUnlearner(pipe, RUN, False, **options)
    worker.unlearn("dog", "cat", init_adapter=folders[1])
    own = {n: p for n, p in pipe.unet.named_parameters() if "lora_A" in n}
    state = read_adapter(folders[1]).state
    assert len(own) == len(state) / 2
    for name, value in own.items():
        key = name.replace(f".{worker.adapter_name}.", ".")
        torch.testing.assert_close(value.data, state[key], atol=1e-6, rtol=0)
    config = worker.recipe["config"]
    assert config["rank"] == 3 and config["alpha"] == 6
    with pytest.raises(ValueError, match="went on from another"):
        retrain(build_tiny_pipe(), worker.recipe)
    with pytest.raises(ValueError, match="there is no folder"):
        worker.unlearn("dog", "cat", init_adapter="missing")
