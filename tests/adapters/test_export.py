from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils import convert_state_dict_to_kohya
from exporting import EVERYTHING, build, error, expected, latents, updates, write_random
from safetensors.torch import load_file, save_file

from diffusers_fdu.adapters.adapter_file import Layer
from diffusers_fdu.adapters.export.export import export, read_exported
from diffusers_fdu.adapters.export.layers import _join
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter
from diffusers_fdu.emoji.loading import load_emoji_pipeline

READ_BY_DIFFUSERS = {
    "sd": None,
    "sdxl": None,
    "sd, all kinds of layers": EVERYTHING["sd"],
    "sdxl, all kinds of layers": EVERYTHING["sdxl"],
    # Its loader cuts the single blocks' matrix at 3072, 6144 and 9216 rows, whatever its size.
    "flux, double blocks": ["add_k_proj", "add_v_proj"],
    "flux, all kinds of layers": [
        f"transformer_blocks.0.{name}"
        for name in ("attn.to_q", "attn.to_out.0", "attn.add_v_proj", "ff.net.2", "ff.net.0.proj")
    ],
}


@pytest.mark.parametrize("case", READ_BY_DIFFUSERS)
def test_diffusers_reads_it_back(tmp_path, case) -> None:
    family = case.split(",")[0]
    folder = write_random(build(family), family, tmp_path / "own", READ_BY_DIFFUSERS[case])
    wanted, without = expected(family, folder)
    path = export(folder, tmp_path / "exported.safetensors")
    pipe = build(family)
    pipe.load_lora_weights(path)
    assert error(latents(pipe, family), wanted, without) < 1e-4


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_a_wrong_alpha_would_be_noticed(tmp_path, family) -> None:
    """What diffusers' own converter writes: the rank."""
    wanted_layers = ["add_k_proj", "add_v_proj"] if family == "flux" else None
    folder = write_random(build(family), family, tmp_path / "own", wanted_layers)
    wanted, without = expected(family, folder)
    path = export(folder, tmp_path / "exported.safetensors")
    file = load_file(path)
    for name in [key for key in file if key.endswith(".alpha")]:
        file[name] = torch.tensor(
            float(file[name.replace(".alpha", ".lora_down.weight")].shape[0])
        )
    save_file(file, path)
    pipe = build(family)
    pipe.load_lora_weights(path)
    assert error(latents(pipe, family), wanted, without) > 0.1


def test_names_of_stable_diffusion_are_those_of_diffusers_converter(tmp_path) -> None:
    folder = write_random(build("sd"), "sd", tmp_path / "own", EVERYTHING["sd"])
    own = load_file(export(folder, tmp_path / "exported.safetensors"))
    state = {f"unet.{key}": value for key, value in read_adapter(folder).state.items()}
    theirs = convert_state_dict_to_kohya(state)
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.endswith("alpha"))
    assert {own[key].item() for key in own if key.endswith("alpha")} == {3.0}
    one = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    assert one in own


def test_names_of_stable_diffusion_xl_are_those_of_its_checkpoint(tmp_path) -> None:
    folder = write_random(build("sdxl"), "sdxl", tmp_path / "own", ["attn2.to_k"])
    path = export(folder, tmp_path / "x.safetensors")
    names = {key.split("_transformer")[0] for key in updates(path)}
    # Of sd_xl_base_1.0.safetensors, `model.diffusion_model.` and dots left out.
    blocks = [f"input_blocks_{i}" for i in (4, 5, 7, 8)] + ["middle_block"]
    blocks += [f"output_blocks_{i}" for i in range(6)]
    assert names == {f"lora_unet_{block}_1" for block in blocks}


def add_as_published(pipe: Any, family: str, path: Path) -> None:
    """Add a file's updates to the weights, cut as the models' own code cuts them."""
    weights = dict(pipe.transformer.named_parameters())
    for name, update in updates(path).items():
        _, _, kind, _, number, rest = name.split("_", 5)
        block = f"{'single_' * (kind == 'single')}transformer_blocks.{number}."
        if rest == "linear1":
            width = update.shape[1]
            cut = update.split([width, width, width, 4 * width])
            targets = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
        elif rest.endswith("qkv"):
            cut = update.chunk(3)
            is_text = rest.startswith(("txt", "context"))
            targets = [f"attn.add_{p}_proj" if is_text else f"attn.to_{p}" for p in "qkv"]
        else:
            cut, targets = [update], [SINGLE_LAYERS[rest]]
        for target, part in zip(targets, cut, strict=True):
            with torch.no_grad():
                weights[f"{block}{target}.weight"] += part


SINGLE_LAYERS = {
    "img_attn_proj": "attn.to_out.0",
    "txt_attn_proj": "attn.to_add_out",
    "img_mlp_2": "ff.net.2",
    "x_block_attn_proj": "attn.to_out.0",
    "x_block_mlp_fc1": "ff.net.0.proj",
    "context_block_mlp_fc2": "ff_context.net.2",
}


@pytest.mark.parametrize("layers", ["own", "all kinds"])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_updates_of_whole_matrices_do_what_the_adapter_does(tmp_path, family, layers) -> None:
    wanted_layers = None if layers == "own" else EVERYTHING[family]
    folder = write_random(build(family), family, tmp_path / "own", wanted_layers)
    wanted, without = expected(family, folder)
    path = export(folder, tmp_path / "exported.safetensors")
    pipe = build(family)
    add_as_published(pipe, family, path)
    assert error(latents(pipe, family), wanted, without) < 1e-4


class Blank(dict):
    """A checkpoint in which what is missing is zero."""

    def pop(self, key: str, *_: Any) -> torch.Tensor:
        return super().pop(key, torch.zeros(6, 1))


def test_diffusers_cuts_updates_of_sd3_into_the_adapters_own(tmp_path) -> None:
    """By its reader of whole SD3 checkpoints, since it has none of SD3 LoRAs of this kind."""
    folder = write_random(build("sd3"), "sd3", tmp_path / "own")
    path = export(folder, tmp_path / "exported.safetensors")
    checkpoint = Blank({"context_embedder.weight": torch.zeros(6, 1)})
    for name, update in updates(path).items():
        number = name.split("_")[4]
        assert name == f"lora_unet_joint_blocks_{number}_context_block_attn_qkv"
        checkpoint[f"joint_blocks.{number}.context_block.attn.qkv.weight"] = update
    found = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    own = read_adapter(folder)
    assert len(own.layers) == 4
    for module, (down, up, _) in own.layers.items():
        torch.testing.assert_close(found[f"{module}.weight"], 1.5 * up @ down)
    for number in "01":
        assert not found[f"transformer_blocks.{number}.attn.add_q_proj.weight"].any()


def test_sd3_files_are_not_for_diffusers(tmp_path) -> None:
    """Its loader says nothing and does nothing; once that changes, so must the docstring."""
    pipe = build("sd3")
    path = export(write_random(build("sd3"), "sd3", tmp_path / "own"), tmp_path / "x.safetensors")
    pipe.load_lora_weights(path)
    assert not pipe.get_active_adapters()


@pytest.mark.parametrize("rank", [2, 3])
def test_diffusers_cuts_flux_of_its_real_width(tmp_path, rank) -> None:
    """Of rank 3 the sum of the ranks is divisible by 3, which its loader looks at."""
    draws = torch.Generator().manual_seed(0)
    modules = [f"transformer_blocks.18.attn.add_{p}_proj" for p in "kv"]
    modules += [f"single_transformer_blocks.37.attn.to_{p}" for p in "kv"]
    state = {}
    for module in modules:
        state[f"{module}.lora_A.weight"] = torch.randn(rank, 3072, generator=draws)
        state[f"{module}.lora_B.weight"] = torch.randn(3072, rank, generator=draws)
    config = {"r": rank, "lora_alpha": 7, "target_modules": modules}
    config |= {"rank_pattern": {}, "alpha_pattern": {}}
    write_adapter(tmp_path, "diffusers", "transformer", state, config)
    path = export(tmp_path, tmp_path / "x.safetensors", family="flux")
    found = d.FluxPipeline.lora_state_dict(path)
    x = torch.randn(3072, generator=draws)
    seen = 0
    for key in [key for key in found if key.endswith("lora_A.weight")]:
        module = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        made = found[key.replace("lora_A", "lora_B")] @ (found[key] @ x)
        if module in modules:
            own = state[f"{module}.lora_B.weight"] @ (state[f"{module}.lora_A.weight"] @ x)
            torch.testing.assert_close(made, own * 7 / rank, rtol=1e-4, atol=1e-2)
            seen += 1
        else:
            assert not made.any(), module
    assert seen == 4


def test_layers_of_one_matrix_may_have_ranks_and_alphas_of_their_own(tmp_path) -> None:
    patterns = {"rank_pattern": {"add_k_proj": 4}, "alpha_pattern": {"add_v_proj": 0.5}}
    folder = write_random(build("flux"), "flux", tmp_path / "own", None, **patterns)
    wanted, without = expected("flux", folder)
    path = export(folder, tmp_path / "x.safetensors")
    pipe = build("flux")
    add_as_published(pipe, "flux", path)
    assert error(latents(pipe, "flux"), wanted, without) < 1e-4
    header = read_exported(path).header
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("Dynamic", "6")


def test_parts_that_do_not_fit_their_matrix_are_refused() -> None:
    heights = {"attn.to_q": 8, "attn.to_k": 4}
    parts = {n: Layer(torch.ones(2, 8), torch.ones(h, 2), 2.0) for n, h in heights.items()}
    with pytest.raises(ValueError, match="attn.to_k has 4 rows"):
        _join(parts, ("attn.to_q", "attn.to_k", "attn.to_v"))


def test_layers_of_a_unet_share_one_alpha(tmp_path) -> None:
    """diffusers 0.42 gives attention layers the most frequent alpha, whatever is theirs."""
    patterns = {"rank_pattern": {"attn2.to_k": 4}, "alpha_pattern": {"attn2.to_v": 0.5}}
    folder = write_random(build("sd"), "sd", tmp_path / "own", None, **patterns)
    wanted, without = expected("sd", folder)
    path = export(folder, tmp_path / "x.safetensors")
    pipe = build("sd")
    pipe.load_lora_weights(path)
    assert error(latents(pipe, "sd"), wanted, without) < 1e-4
    layers = read_exported(path).layers
    assert {(layer.rank, layer.alpha) for layer in layers.values()} == {(4, 3.0), (2, 3.0)}


def test_the_embedded_model_draws_the_same_pictures(tmp_path) -> None:
    folder = write_random(load_emoji_pipeline(), "sd", tmp_path / "own")
    path = export(folder, tmp_path / "x.safetensors")
    pictures = []
    for source in (folder, path):
        pipe = load_emoji_pipeline()
        before = pixels(pipe)
        pipe.load_lora_weights(source)
        pictures.append(pixels(pipe))
    assert not torch.allclose(before, pictures[0], atol=0.05)
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-5)


def pixels(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    run = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 4.0}
    prompts = ["a dog emoji", "a pizza emoji in noto style"]
    return pipe(prompts, generator=torch.Generator().manual_seed(1), **run).images
