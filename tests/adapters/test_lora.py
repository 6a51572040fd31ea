from __future__ import annotations

import pytest
import torch

from diffusers_fdu.adapters.loading import lora_metadata
from diffusers_fdu.adapters.lora import attach, finish, free_name, lora_config, name_for, snapshot


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 1.0), (6, 2.0), (1.5, 0.5)])
def test_alpha_scales_the_update(pipe, alpha, scaling) -> None:
    """The layer's output moves by alpha / rank * x A^T B^T."""
    config = lora_config(pipe.unet, 3, alpha, ["attn2.to_v"])
    name, layer = next((n, m) for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_v"))
    x = torch.randn(2, 5, layer.in_features)
    plain = layer(x)
    attach(pipe.unet, "x", config, seed=0)
    layer = pipe.unet.get_submodule(name)
    a, b = layer.lora_A["x"].weight, layer.lora_B["x"].weight
    b.data.normal_()
    torch.testing.assert_close(layer(x) - plain, scaling * x @ a.T @ b.T, rtol=1e-4, atol=1e-5)


def test_the_seed_alone_decides_the_initial_weights(pipe) -> None:
    config = lora_config(pipe.unet, 2, None, None)
    drawn = []
    for i, (name, seed) in enumerate([("a", 3), ("b", 3), ("c", 4)]):
        torch.manual_seed(i)
        state = torch.get_rng_state()
        drawn.append([p.detach().clone() for p in attach(pipe.unet, name, config, seed)])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not all(torch.equal(a, c) for a, c in zip(drawn[0], drawn[2], strict=True))


def test_finishing_freezes_and_restores_flags(pipe) -> None:
    pipe.unet.requires_grad_(True).train()
    before = snapshot(pipe.unet)
    attach(pipe.unet, "x", lora_config(pipe.unet, 2, None, None), seed=0)
    assert not pipe.unet.training
    finish(pipe.unet, "x", before)
    grads = {n: p.requires_grad for n, p in pipe.unet.named_parameters()}
    assert not any(on for n, on in grads.items() if "lora_" in n)
    assert all(on for n, on in grads.items() if "lora_" not in n)
    assert pipe.unet.training


def test_metadata_has_what_older_loaders_read(pipe) -> None:
    """diffusers 0.37 asks for rank_pattern; older PEFT refuses fields that it does not know."""
    attach(pipe.unet, "x", lora_config(pipe.unet, 3, 7.5, None), seed=0)
    assert lora_metadata(pipe.unet, "x") == {
        "r": 3,
        "lora_alpha": 7.5,
        "target_modules": ["attn2.to_k", "attn2.to_v"],
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def test_default_names_are_free_and_plain(pipe) -> None:
    assert name_for(["Van Gogh, 1889"]) == "forget-van-gogh-1889"
    assert name_for(["\u72ac"]) == "forget-concept"
    attach(pipe.unet, "forget-dog", lora_config(pipe.unet, 2, None, None), seed=0)
    assert free_name(name_for(["dog"]), pipe.unet) == "forget-dog-2"
