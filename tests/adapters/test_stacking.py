from __future__ import annotations

import pytest
import torch
from conftest import build_tiny_pipe, latents
from families import FAMILIES
from made import both, update

from diffusers_fdu import stack, strengths, unstack
from diffusers_fdu.adapters.write import write_adapter


@pytest.fixture
def folders(tmp_path) -> list:
    return both(tmp_path)


def updated(pipe, folders, weights) -> torch.Tensor:
    """What the pipe draws with the updates multiplied into its weights."""
    plain = build_tiny_pipe()
    for folder, weight in zip(folders, weights, strict=True):
        for name, delta in update(folder, weight).items():
            plain.unet.get_submodule(name).weight.data += delta
    return latents(plain)


def test_a_stack_is_the_sum_of_its_updates(pipe, folders) -> None:
    base = latents(pipe)
    assert stack(pipe, folders, [1.0, 0.5]) == {"forget-dog": 1.0, "forget-cat": 0.5}
    expected = updated(pipe, folders, [1.0, 0.5])
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(latents(pipe), expected, atol=2e-5, rtol=0)
    assert not any(p.requires_grad for n, p in pipe.unet.named_parameters() if "lora_" in n)


def test_strengths_are_shown_and_set_one_by_one(pipe, folders) -> None:
    stack(pipe, folders)
    assert strengths(pipe, {"forget-dog": 0.25}) == {"forget-dog": 0.25, "forget-cat": 1.0}
    expected = updated(pipe, folders, [0.25, 1.0])
    torch.testing.assert_close(latents(pipe), expected, atol=2e-5, rtol=0)
    pipe.set_adapters(["forget-cat"], [0.5])  # diffusers' own; the other is off then
    assert strengths(pipe) == {"forget-dog": 0.0, "forget-cat": 0.5}
    assert strengths(pipe, {"forget-dog": 1.0}) == {"forget-dog": 1.0, "forget-cat": 0.5}
    expected = updated(pipe, folders, [1.0, 0.5])
    torch.testing.assert_close(latents(pipe), expected, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="no adapter 'dog' on the pipe: there are forget-dog"):
        strengths(pipe, {"dog": 1.0})


def test_unstacking_one_leaves_the_others(pipe, folders) -> None:
    base = latents(pipe)
    stack(pipe, folders, [0.7, 1.0])
    unstack(pipe, ["forget-cat"])
    assert strengths(pipe) == {"forget-dog": 0.7}
    torch.testing.assert_close(latents(pipe), updated(pipe, folders[:1], [0.7]), atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="no adapter 'forget-cat'"):
        unstack(pipe, ["forget-cat"])
    unstack(pipe)
    assert strengths(pipe) == {} and latents(pipe).equal(base)
    assert not hasattr(pipe.unet, "peft_config")


def test_unstacking_gives_flags_back(pipe, folders) -> None:
    pipe.unet.requires_grad_(True)
    pipe.unet.train()
    stack(pipe, folders)
    unstack(pipe)
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
    assert all(module.training for module in pipe.unet.modules())


def test_a_stack_that_fails_leaves_the_pipe_as_it_was(pipe, folders, tmp_path) -> None:
    stack(pipe, folders[:1], [0.6])
    before = latents(pipe)
    with pytest.raises(ValueError, match="there is no folder"):
        stack(pipe, [folders[1], tmp_path / "missing"])
    assert strengths(pipe) == {"forget-dog": 0.6} and latents(pipe).equal(before)
    with pytest.raises(ValueError, match="1 adapters and 2 weights"):
        stack(pipe, folders[1:], [1.0, 1.0])
    with pytest.raises(TypeError, match="a list"):
        stack(pipe, str(folders[0]))
    with pytest.raises(ValueError, match="nan"):
        stack(pipe, folders[1:], [float("nan")])
    assert strengths(pipe) == {"forget-dog": 0.6}


def test_the_same_adapter_twice_gets_another_name(pipe, folders) -> None:
    assert list(stack(pipe, [folders[0], folders[0]])) == ["forget-dog", "forget-dog-2"]
    torch.testing.assert_close(latents(pipe), updated(pipe, folders[:1], [2.0]), atol=2e-5, rtol=0)


def test_what_is_fused_or_off_is_refused(pipe, folders) -> None:
    stack(pipe, folders[:1])
    pipe.disable_lora()
    with pytest.raises(ValueError, match="off"):
        stack(pipe, folders[1:])
    pipe.enable_lora()
    pipe.fuse_lora()
    for change in (lambda: unstack(pipe), lambda: strengths(pipe, {"forget-dog": 0.5})):
        with pytest.raises(ValueError, match="fused"):
            change()


def test_two_denoisers_may_share_a_name(tmp_path) -> None:
    pipe = FAMILIES["wan22"].build()
    for component in ("transformer", "transformer_2"):
        model = getattr(pipe, component)
        names = [n for n, _ in model.named_modules() if n.endswith("attn2.to_k")][:1]
        layer = model.get_submodule(names[0])
        state = {
            f"{names[0]}.lora_A.weight": torch.ones(2, layer.in_features),
            f"{names[0]}.lora_B.weight": torch.ones(layer.out_features, 2),
        }
        config = {"r": 2, "lora_alpha": 2, "target_modules": names}
        (tmp_path / component).mkdir()
        write_adapter(tmp_path / component, "diffusers", component, state, config)
        recipe = f'{{"adapter_name": "forget", "component": "{component}"}}'
        (tmp_path / component / "recipe.json").write_text(recipe)
    parts = [tmp_path / "transformer", tmp_path / "transformer_2"]
    assert stack(pipe, parts, [1.0, 0.5]) == {"forget": 0.5}
    scales = [
        layer.scaling["forget"]
        for model in (pipe.transformer, pipe.transformer_2)
        for layer in model.modules()
        if hasattr(layer, "scaling") and "forget" in layer.scaling
    ]
    assert scales == [1.0, 0.5]
    unstack(pipe)
    with pytest.raises(ValueError, match="there is no folder"):
        stack(pipe, [*parts, tmp_path / "missing"])
    assert strengths(pipe) == {}
