from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils import convert_state_dict_to_kohya
from families import FAMILIES
from families.parts import unet
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from diffusers_fdu import load_unlearned
from diffusers_fdu.emoji import load_emoji_pipeline
from diffusers_fdu.export import export, read_exported
from diffusers_fdu.files import read_adapter, write_adapter
from diffusers_fdu.targets import target_modules

PIPELINES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
}
EVERYTHING = {
    "sd": ["attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"],
    "flux": ["to_q", "to_v", "add_q_proj", "to_out.0", "to_add_out", "ff.net.2", "proj_mlp"],
    "sd3": ["to_k", "add_q_proj", "add_v_proj", "to_out.0", "ff.net.0.proj", "ff_context.net.2"],
}
EVERYTHING["sdxl"] = [*EVERYTHING["sd"], "proj_in", "proj_out"]


def build(family: str) -> Any:
    """A tiny pipeline; Stable Diffusion XL's with as many blocks and layers as the real one."""
    pipe = FAMILIES[family].build()
    if family == "sdxl":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe.unet = unet(
                layers_per_block=2,
                block_out_channels=(4, 8, 8),
                down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
                up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
                attention_head_dim=(2, 4, 4),
                transformer_layers_per_block=(1, 1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=80,
                cross_attention_dim=64,
            )
    return pipe


def component(family: str) -> str:
    return "unet" if family in ("sd", "sdxl") else "transformer"


def write_random(
    pipe: Any, family: str, folder: Path, wanted: list[str] | None = None, **patterns: Any
) -> Path:
    """An adapter of rank 2 and alpha 3 with random weights, large enough to be seen."""
    model = getattr(pipe, component(family))
    modules = target_modules(model, wanted)
    config = {"r": 2, "lora_alpha": 3, "target_modules": modules}
    config |= {"rank_pattern": {}, "alpha_pattern": {}, **patterns}
    inject_adapter_in_model(LoraConfig(**config), model, "random")
    draws = torch.Generator().manual_seed(5)
    state = {
        key: torch.randn(value.shape, generator=draws) * (0.5 if ".lora_B." in key else 0.1)
        for key, value in get_peft_model_state_dict(model, adapter_name="random").items()
    }
    folder.mkdir(exist_ok=True)
    write_adapter(folder, "diffusers", component(family), state, config)
    recipe = {"pipeline": PIPELINES[family], "adapter_name": "random"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def latents(pipe: Any, family: str) -> torch.Tensor:
    run = {"num_inference_steps": 2, "output_type": "latent", **FAMILIES[family].run}
    return pipe("a dog", generator=torch.Generator().manual_seed(0), **run).images.clone()


def expected(family: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with the adapter and without it."""
    pipe = build(family)
    without = latents(pipe, family)
    load_unlearned(pipe, folder)
    return latents(pipe, family), without


def error(found: torch.Tensor, wanted: torch.Tensor, without: torch.Tensor) -> float:
    """As a share of what the adapter changes."""
    change = (wanted - without).norm()
    assert change > 1e-3 * without.norm(), "the adapter changes nothing: the test is void"
    return ((found - wanted).norm() / change).item()


def updates(path: Path) -> dict[str, torch.Tensor]:
    """Every layer's alpha / rank up @ down, as kohya's documentation has it."""
    file = load_file(path)
    found = {}
    for key in [key for key in file if key.endswith(".lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        down, up = file[key], file[f"{name}.lora_up.weight"]
        scale = file[f"{name}.alpha"] / down.shape[0]
        found[name] = scale * (up.flatten(1) @ down.flatten(1)).reshape(
            up.shape[0], *down.shape[1:]
        )
    return found


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
    assert len(own.modules) == 4
    for module, (down, up) in own.modules.items():
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


RECIPE = {
    "pipeline": "StableDiffusionPipeline",
    "adapter_name": "forget-dog",
    "base_model": "/home/someone/models/stable-diffusion-v1-5",
    "concepts": [{"target": "dog", "anchor": "cat", "kind": "object"}],
    "f": "hellinger",
    "pipeline_kwargs": {"height": 64, "width": 96},
}


def with_recipe(folder: Path, recipe: dict[str, Any] | None) -> Path:
    path = folder / "recipe.json"
    path.unlink() if recipe is None else path.write_text(json.dumps(recipe))
    return folder


def test_the_header_says_what_it_is(tmp_path) -> None:
    folder = with_recipe(write_random(build("sd"), "sd", tmp_path / "own"), RECIPE)
    path = export(folder, tmp_path / "deep" / "no-dog.safetensors", title="No dogs")
    header = read_exported(path).header
    assert all(isinstance(value, str) for value in header.values())
    digest = header.pop("sshs_model_hash")
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert digest == hashlib.sha256(data).hexdigest()
    known = {**RECIPE, "base_model": "stable-diffusion-v1-5"}
    assert json.loads(header.pop("diffusers_fdu.recipe")) == known
    told = header.pop("modelspec.description")
    assert "'dog'" in told and "'cat'" in told and "trigger" in told
    assert header == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "3",
        "ss_output_name": "no-dog",
        "ss_sd_model_name": "stable-diffusion-v1-5",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "No dogs",
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.resolution": "96x64",
        "modelspec.tags": "concept unlearning",
    }


def test_paths_of_this_machine_stay_here(tmp_path) -> None:
    merged = [{"base_model": "/home/someone/a/base", "merged": [RECIPE]}, {"base_model": "o/b"}]
    recipe = {**RECIPE, "merged": merged, "start": {"base_model": "C:\\someone\\base"}}
    folder = with_recipe(write_random(build("sd"), "sd", tmp_path / "own"), recipe)
    path = export(folder, tmp_path / "x.safetensors")
    assert b"someone" not in path.read_bytes()
    found = read_exported(path).recipe
    assert found["start"] == {"base_model": "base"} and found["f"] == "hellinger"
    assert [part["base_model"] for part in found["merged"]] == ["base", "o/b"]
    assert found["merged"][0]["merged"][0]["base_model"] == "stable-diffusion-v1-5"
    assert json.loads((folder / "recipe.json").read_text()) == recipe


ARCHITECTURES = {
    ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"): (
        "networks.lora",
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
    ),
    ("flux", "black-forest-labs/FLUX.1-dev"): ("networks.lora_flux", "flux1", "flux-1-dev"),
    ("flux", "models/FLUX.1-schnell"): ("networks.lora_flux", "flux1", "flux-1-schnell"),
    ("flux", None): ("networks.lora_flux", "flux1", "flux-1"),
    ("sd3", "stabilityai/stable-diffusion-3.5-large"): (
        "networks.lora_sd3",
        "sd3",
        "stable-diffusion-3-5-large",
    ),
    ("sd3", "stabilityai/stable-diffusion-3-medium-diffusers"): (
        "networks.lora_sd3",
        "sd3",
        "stable-diffusion-3-medium",
    ),
}


@pytest.mark.parametrize(("family", "base"), ARCHITECTURES)
def test_the_header_names_the_architecture(tmp_path, family, base) -> None:
    folder = write_random(build(family), family, tmp_path / "own")
    with_recipe(folder, {"pipeline": PIPELINES[family], "base_model": base})
    header = read_exported(export(folder, tmp_path / "x.safetensors")).header
    keys = ("ss_network_module", "ss_base_model_version", "modelspec.architecture")
    module, version, architecture = ARCHITECTURES[family, base]
    assert tuple(header[key] for key in keys) == (module, version, f"{architecture}/lora")


@pytest.mark.parametrize(
    ("width", "base", "version", "is_v2"),
    [
        (1024, "stabilityai/stable-diffusion-2-1", "sd_v2_v", "True"),
        (1024, "stabilityai/stable-diffusion-2-1-base", "sd_v2", "True"),
        (768, None, "sd_v1", "False"),
        (2048, None, "sdxl_base_v1-0", "False"),
    ],
)
def test_unets_are_told_by_the_width_of_the_text(tmp_path, width, base, version, is_v2) -> None:
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    state = {f"{module}.lora_A.weight": torch.ones(2, width)}
    state[f"{module}.lora_B.weight"] = torch.ones(8, 2)
    config = {"r": 2, "lora_alpha": 2, "target_modules": ["attn2.to_k"]}
    write_adapter(tmp_path, "diffusers", "unet", state, config)
    (tmp_path / "recipe.json").write_text(json.dumps({"base_model": base}))
    header = read_exported(export(tmp_path, tmp_path / "x.safetensors")).header
    assert (header["ss_base_model_version"], header["ss_v2"]) == (version, is_v2)


def test_the_same_adapter_gives_the_same_bytes(tmp_path) -> None:
    folder = with_recipe(write_random(build("flux"), "flux", tmp_path / "own"), None)
    names = [export(folder, tmp_path / d / "x.safetensors", family="flux") for d in "ab"]
    assert names[0].read_bytes() == names[1].read_bytes()
    again = export(folder, names[0], family="flux")
    assert again == names[0] and again.read_bytes() == names[1].read_bytes()
    assert [path.name for path in names[0].parent.iterdir()] == ["x.safetensors"]


def test_recipes_of_strangers_do_no_harm(tmp_path) -> None:
    folder = write_random(build("sd"), "sd", tmp_path / "own")
    for name in ("adapter_name", "base_model", "concepts", "pipeline_kwargs"):
        for value in (None, 3, "\ud800", [3], {"width": "x", "height": 3}, [{"target": {}}]):
            with_recipe(folder, {"pipeline": PIPELINES["sd"], name: value})
            try:
                read_exported(export(folder, tmp_path / "x.safetensors"))
            except ValueError as error:
                assert "the recipe's" in str(error)


def test_weights_keep_their_dtype(tmp_path) -> None:
    found = read_adapter(write_random(build("flux"), "flux", tmp_path / "own"))
    half = {key: value.bfloat16() for key, value in found.state.items()}
    write_adapter(tmp_path / "own", "diffusers", "transformer", half, found.config)
    layers = read_exported(export(tmp_path / "own", tmp_path / "x.safetensors")).layers
    assert {v.dtype for layer in layers.values() for v in layer[:2]} == {torch.bfloat16}
    assert {layer.alpha for layer in layers.values()} == {6.0}


def test_what_cannot_be_exported_is_refused(tmp_path) -> None:
    folder = write_random(build("sd"), "sd", tmp_path / "own")
    out = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="kohya$"):
        export(folder, out, "onnx")
    with pytest.raises(ValueError, match="must end in .safetensors"):
        export(folder, tmp_path / "x.bin")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="is no file"):
        export(folder, tmp_path / "folder.safetensors")
    with pytest.raises(ValueError, match="unknown family 'sd1'.*sd, sdxl, flux, sd3"):
        export(folder, out, family="sd1")
    with pytest.raises(ValueError, match="has a transformer"):
        export(folder, out, family="flux")
    with pytest.raises(ValueError, match="holds neither"):
        export(tmp_path, out)
    with pytest.raises(ValueError, match="pass family"):
        export(with_recipe(folder, None), out)
    for pipeline in ("KolorsPipeline", "ChromaPipeline", "Flux2Pipeline", "WanPipeline"):
        with pytest.raises(ValueError, match=f"{pipeline}.*FLUX.1"):
            export(with_recipe(folder, {"pipeline": pipeline}), out)
    with pytest.raises(ValueError) as error:
        export(with_recipe(folder, {"pipeline": "\x1b[31mWan"}), out)
    assert "\x1b" not in str(error.value)
    assert not out.exists()


def test_layers_without_a_name_elsewhere_are_refused(tmp_path) -> None:
    folder = write_random(build("sd"), "sd", tmp_path / "sd", ["time_embedding.linear_1"])
    with pytest.raises(ValueError, match="'time_embedding.linear_1' is not exported"):
        export(folder, tmp_path / "x.safetensors")
    folder = write_random(build("flux"), "flux", tmp_path / "flux", ["norm1.linear"])
    with pytest.raises(ValueError, match="norm1.linear' is not exported"):
        export(folder, tmp_path / "x.safetensors")


def test_files_that_are_no_lora_are_not_read(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        read_exported(path)
    for tensors in (
        {"a.lora_down.weight": torch.ones(2, 3)},
        {"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(3, 4)},
        {"model.weight": torch.ones(2)},
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match="is no LoRA"):
            read_exported(path)
