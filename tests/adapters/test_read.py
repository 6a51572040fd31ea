from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from diffusers_fdu import load_unlearned
from diffusers_fdu.adapters.loading import save_adapter
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter

MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONFIG = {
    "r": 2,
    "lora_alpha": 6,
    "target_modules": ["attn2.to_k"],
    "rank_pattern": {},
    "alpha_pattern": {},
}
NAME = "pytorch_lora_weights.safetensors"


def state(rank: int = 2, **extra) -> dict:
    down, up = torch.ones(rank, 16), torch.ones(16, rank)
    return {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": up, **extra}


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_what_is_written_is_read(tmp_path, format) -> None:
    write_adapter(tmp_path, format, "unet", state(), CONFIG)
    found = read_adapter(tmp_path)
    assert found.format == format and found.config == CONFIG and found.recipe == {}
    assert found.state.keys() == state().keys()
    assert found.layers[MODULE].rank == 2 and found.layers[MODULE].alpha == 6.0
    assert format == "peft" or found.component == "unet"


def test_patterns_are_looked_up_as_peft_does(tmp_path) -> None:
    config = {**CONFIG, "rank_pattern": {"attn2.to_k": 3}, "alpha_pattern": {f"^{MODULE}$": 1.5}}
    write_adapter(tmp_path, "diffusers", "unet", state(3), config)
    found = read_adapter(tmp_path)
    assert found.layers[MODULE].rank == 3 and found.layers[MODULE].alpha == 1.5


def test_without_metadata_alpha_is_the_rank(tmp_path) -> None:
    """As diffusers reads such a file."""
    save_file({f"unet.{k}": v for k, v in state().items()}, tmp_path / NAME)
    found = read_adapter(tmp_path)
    assert found.layers[MODULE].rank == 2 and found.layers[MODULE].alpha == 2.0


def test_a_recipe_names_the_second_denoiser(tmp_path) -> None:
    write_adapter(tmp_path, "diffusers", "transformer_2", state(), CONFIG)
    assert read_adapter(tmp_path).component == "transformer"
    (tmp_path / "recipe.json").write_text('{"component": "transformer_2"}')
    assert read_adapter(tmp_path).component == "transformer_2"


A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
BAD = {
    "odd key": ({**state(), f"{MODULE}.diff": torch.ones(2, 2)}, "unexpected key"),
    "dora": ({**state(), f"{MODULE}.lora_magnitude_vector": torch.ones(16)}, "unexpected key"),
    "one half": ({A: torch.ones(2, 16)}, "is without"),
    "ranks differ": ({A: torch.ones(2, 16), B: torch.ones(16, 3)}, "not of rank 2"),
    "not the metadata's": (state(3), "not of rank 2"),
    "whole numbers": ({A: torch.ones(2, 16, dtype=torch.int8), B: torch.ones(16, 2)}, "int8"),
    "a vector": ({A: torch.ones(2), B: torch.ones(16, 2)}, "of shape"),
    "not a number": ({A: torch.full((2, 16), float("nan")), B: torch.ones(16, 2)}, "not finite"),
    "infinite": ({A: torch.ones(2, 16), B: torch.full((16, 2), float("inf"))}, "not finite"),
    "nothing": ({}, "begin with"),
    "rank 0": ({A: torch.ones(0, 16), B: torch.ones(16, 0)}, "of shape"),
    "a kernel above": ({A: torch.ones(2, 16, 1, 1), B: torch.ones(16, 2, 3, 3)}, "not of rank 2"),
    "a kernel in one": ({A: torch.ones(2, 16, 1, 1), B: torch.ones(16, 2)}, "not of rank 2"),
    "float8 not a number": (
        {A: torch.full((2, 16), float("nan")).to(torch.float8_e4m3fn), B: torch.ones(16, 2)},
        "not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_are_no_lora_are_refused(tmp_path, pipe, name) -> None:
    weights, reason = BAD[name]
    write_adapter(tmp_path, "diffusers", "unet", weights, CONFIG)
    before = dict(pipe.unet.named_parameters())
    for refusing in (lambda: read_adapter(tmp_path), lambda: load_unlearned(pipe, tmp_path)):
        with pytest.raises(ValueError, match=f"no adapter to be trusted.*{reason}"):
            refusing()
    assert dict(pipe.unet.named_parameters()).keys() == before.keys()


def test_a_text_encoders_lora_is_refused(tmp_path) -> None:
    save_file({f"text_encoder.{k}": v for k, v in state().items()}, tmp_path / NAME)
    with pytest.raises(ValueError, match="begin with text_encoder, not with one of unet"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": float("nan")},
        {"lora_alpha": -1.0},
        {"lora_alpha": [1]},
        {"lora_alpha": 10**400},
        {"lora_alpha": None},
        {"r": "2"},
        {"rank_pattern": [2]},
        {"rank_pattern": {"to_k": "3"}},
        {"alpha_pattern": {r"(\w+\.?)+!": 1}},  # runs for ever on a long name
        {"alpha_pattern": {"(": 1}},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["conv_in"]},
    ],
    ids=str,
)
def test_metadata_that_is_not_that_of_a_plain_lora(tmp_path, change) -> None:
    (name,) = change
    write_adapter(tmp_path, "diffusers", "unet", state(), {**CONFIG, **change})
    with pytest.raises(ValueError, match=f"no adapter to be trusted.*{name}"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "7", "{", "[" * 100_000])
def test_a_header_that_holds_no_object(tmp_path, text) -> None:
    named = {f"unet.{k}": v for k, v in state().items()}
    save_file(named, tmp_path / NAME, {"lora_adapter_metadata": text})
    with pytest.raises(ValueError, match="the header (is no JSON|holds no JSON object)"):
        read_adapter(tmp_path)


def test_metadata_of_no_effect_is_not_passed_on(tmp_path, pipe) -> None:
    """diffusers would hand whatever stands there to PEFT."""
    config = {**CONFIG, "init_lora_weights": "pissa", "megatron_core": "os", "unknown": 1}
    write_adapter(tmp_path, "diffusers", "unet", state(), config)
    load_unlearned(pipe, tmp_path)
    (found,) = pipe.unet.peft_config.values()
    assert found.init_lora_weights is True and found.lora_alpha == 6


@pytest.mark.parametrize(
    "recipe",
    [
        {"adapter_name": ["a"]},
        {"pipeline": 3},
        {"concepts": None},
        {"concepts": [{"target": 3}]},
        {"concepts": [{}]},
        {"merged": {"a": 1}},
        {"merged": [{"concepts": "dog"}]},
    ],
    ids=str,
)
def test_a_recipe_of_wrong_types(tmp_path, recipe) -> None:
    write_adapter(tmp_path, "diffusers", "unet", state(), CONFIG)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="no adapter to be trusted.*the recipe's"):
        read_adapter(tmp_path)


def test_a_pickle_is_never_opened(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "pytorch_lora_weights.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.bin', a pickle"):
        read_adapter(tmp_path)
    (tmp_path / NAME).write_bytes(pickle.dumps(Bomb()))  # a pickle by another name
    with pytest.raises(ValueError, match="no adapter to be trusted"):
        read_adapter(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_links_may_not_leave_the_folder(tmp_path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "adapter"
    outside.mkdir()
    folder.mkdir()
    write_adapter(outside, "diffusers", "unet", state(), CONFIG)
    (folder / NAME).symlink_to(outside / NAME)
    with pytest.raises(ValueError, match="a link that leaves the folder"):
        read_adapter(folder)
    snapshot = tmp_path / "models--user--repo" / "snapshots" / "0a1b"
    blobs = tmp_path / "models--user--repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (outside / NAME).rename(blobs / "abc")
    (snapshot / NAME).symlink_to(blobs / "abc")  # as the Hub's cache has them
    assert read_adapter(snapshot).layers[MODULE].rank == 2


@pytest.mark.parametrize("text", ["", "[1]", "{'a': 1}", "\x00"])
def test_a_recipe_that_is_no_json(tmp_path, text) -> None:
    write_adapter(tmp_path, "diffusers", "unet", state(), CONFIG)
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=r"recipe.json.* (is no JSON|holds no JSON object)"):
        read_adapter(tmp_path)


def test_pefts_file_must_be_plain_lora(tmp_path) -> None:
    write_adapter(tmp_path, "peft", "unet", state(), CONFIG)
    path = tmp_path / "adapter_config.json"
    for change, reason in (({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "IA3")):
        path.write_text(json.dumps({**CONFIG, "peft_type": "LORA", **change}))
        with pytest.raises(ValueError, match=reason):
            read_adapter(tmp_path)


def test_an_adapter_of_another_architecture(tmp_path, pipe) -> None:
    wide = {A: torch.ones(2, 768), B: torch.ones(16, 2)}
    write_adapter(tmp_path, "diffusers", "unet", wide, CONFIG)
    with pytest.raises(ValueError, match="takes 768 and gives 16 there, and it takes 16 and"):
        load_unlearned(pipe, tmp_path)
    other = {key.replace("attn2", "attn9"): value for key, value in state().items()}
    write_adapter(tmp_path, "diffusers", "unet", other, CONFIG)
    with pytest.raises(ValueError, match="there is no such layer here"):
        load_unlearned(pipe, tmp_path)
    kernel = {A: torch.ones(2, 16, 1, 1), B: torch.ones(16, 2, 1, 1)}
    write_adapter(tmp_path, "diffusers", "unet", kernel, CONFIG)
    with pytest.raises(ValueError, match="is no adapter for this UNet2DConditionModel"):
        load_unlearned(pipe, tmp_path)
    assert not hasattr(pipe.unet, "peft_config")


def test_a_wider_target_is_not_attached_elsewhere(tmp_path, pipe) -> None:
    """The layers are those of the weights, whatever PEFT's file says; nothing is drawn."""
    write_adapter(tmp_path, "peft", "unet", state(), {**CONFIG, "target_modules": "to_k|to_v"})
    drawn = torch.random.get_rng_state()
    load_unlearned(pipe, tmp_path)
    assert torch.random.get_rng_state().equal(drawn)
    adapted = [n for n, m in pipe.unet.named_modules() if hasattr(m, "lora_A")]
    assert adapted == [MODULE]


def test_a_denoiser_compiled_since_is_saved_by_its_own_names(tmp_path, pipe) -> None:
    write_adapter(tmp_path, "diffusers", "unet", state(), CONFIG)
    load_unlearned(pipe, tmp_path, "made")
    pipe.unet = torch.compile(pipe.unet)
    (tmp_path / "again").mkdir()
    save_adapter(pipe, "unet", "made", tmp_path / "again")
    assert read_adapter(tmp_path / "again").state.keys() == state().keys()


def test_what_cannot_be_written_leaves_the_older_adapter(tmp_path, pipe) -> None:
    """Its weights as well as its config, of which the second is written last."""
    write_adapter(tmp_path, "peft", "unet", state(), CONFIG)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        write_adapter(tmp_path, "peft", "unet", state(3), {**CONFIG, "r": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
