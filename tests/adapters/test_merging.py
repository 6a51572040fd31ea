from __future__ import annotations

import json

import pytest
import torch
from conftest import build_tiny_pipe, latents
from made import both, made, update

from diffusers_fdu import FDUnlearner, conflicts, load_unlearned, merge, retrain, stack
from diffusers_fdu.adapters.adapter_file import Layer
from diffusers_fdu.adapters.info import describe
from diffusers_fdu.adapters.merging.parts import truncated
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter
from diffusers_fdu.retraining import refine


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


def test_directions_of_no_effect_are_not_read(tmp_path, folders) -> None:
    """A merged file has such; they must not count as another's inputs."""
    padded = merge(folders, [1.0, 0.0]).save(tmp_path / "padded")
    plain = conflicts(folders).inputs[1][0]
    assert conflicts([padded, folders[1]]).inputs[1][0] == pytest.approx(plain, abs=1e-4)


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
    one = Layer(torch.randn(3, 9, generator=generator), torch.randn(5, 3, generator=generator), 3)
    same = truncated(one, 3)
    torch.testing.assert_close(same.up @ same.down, one.up @ one.down)
    torch.testing.assert_close(same.up.norm(), same.down.norm())


def test_the_recipe_tells_the_parts(folders, tmp_path) -> None:
    (folders[0] / "recipe.json").write_text(
        json.dumps({"adapter_name": "no-dog", "concepts": [{"target": "dog"}], "pipeline": "P"})
    )
    folder = merge(folders, [1.0, 0.5], method="svd", rank=3).save(tmp_path / "all")
    facts = json.loads((folder / "recipe.json").read_text())
    assert [part["adapter_name"] for part in facts["merged"]] == ["no-dog", "forget-cat"]
    assert facts["method"] == "svd" and facts["rank"] == 3
    assert facts["weights"] == [1.0, 0.5] and facts["adapter_name"] == "forget-dog"
    assert 0 < facts["error"] < 1 and "pipeline" not in facts
    with pytest.raises(ValueError, match="was merged"):
        retrain(build_tiny_pipe(), facts)


def test_one_that_was_merged_by_a_method_of_before_is_shown(folders, tmp_path) -> None:
    folder = merge(folders).save(tmp_path / "whole")
    facts = json.loads((folder / "recipe.json").read_text())
    facts |= {"method": "ties", "density": 0.5, "error": 0.395}
    (folder / "recipe.json").write_text(json.dumps(facts))
    assert "2 adapters, method ties, 39.50% from their sum" in str(describe(folder))


@pytest.mark.parametrize("method", ["concat", "svd"])
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
        ({"method": "ties"}, "unknown method 'ties': choose concat, svd"),
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"weights": [1.0, float("inf")]}, "weights must be finite"),
    ],
)
def test_bad_arguments(folders, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        merge(folders, **arguments)


def test_adapters_of_different_models_are_not_merged(folders, tmp_path) -> None:
    other = tmp_path / "other"
    for change in ({"component": "transformer_2"}, {"pipeline": "FluxPipeline"}):
        made(other, 0, 2, ["attn2.to_k"])
        (other / "recipe.json").write_text(json.dumps(change))
        (folders[0] / "recipe.json").write_text('{"pipeline": "StableDiffusionPipeline"}')
        with pytest.raises(ValueError, match="different models: the (denoiser|pipeline) is"):
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
    refined = refine(pipe, plain, False, **options, learning_rate=1e-2)
    assert list(pipe.unet.state_dict()) == keys and latents(pipe).equal(before)
    assert refined.config == plain.config and refined.state.keys() == plain.state.keys()
    assert any(not refined.state[key].equal(plain.state[key]) for key in plain.state)
    facts = refined.recipe["refined"]
    assert facts["steps_done"] == 3 and facts["f"] == "hellinger" and len(facts["sigma"]) == 2
    # Almost no step: it goes on from the merged weights, not from anything else.
    still = refine(pipe, plain, False, **options, learning_rate=1e-9)
    for key, value in plain.state.items():
        torch.testing.assert_close(still.state[key], value, atol=1e-6, rtol=0)
    folder = refined.save(tmp_path / "refined")
    load_unlearned(pipe, folder)
    assert not latents(pipe).equal(before)


def test_refining_needs_recipes_and_the_same_pipe(pipe, folders, trained) -> None:
    with pytest.raises(ValueError, match="'forget-dog' has no recipe of its training"):
        refine(pipe, merge(folders))
    load_unlearned(pipe, trained[0], "other")
    with pytest.raises(ValueError, match="load and set those first"):
        refine(pipe, merge(trained))
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
