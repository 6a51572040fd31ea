from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import PIPELINES, build, write_random
from safetensors.torch import save_file

from diffusers_fdu.adapters.export.export import export, read_exported
from diffusers_fdu.adapters.read import read_adapter
from diffusers_fdu.adapters.write import write_adapter

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
    assert "'dog'" in told and "cat" in told and "trigger" in told
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
