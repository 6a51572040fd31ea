"""An adapter as one file that other programs read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save

from ...utils.io import atomic_write, writable_folder
from ..download import local_folder
from ..read import read_adapter
from ..write import with_sorted_header
from .families import family_of
from .header import header
from .layers import Layer, named_layers

ExportFormat = Literal["kohya"]
PREFIX = "lora_unet_"  # of every denoiser's layers, transformers' too
SUFFIX = ".safetensors"


def export(
    folder: str | Path,
    output: str | Path,
    format: str = "kohya",
    *,
    title: str | None = None,
    family: str | None = None,
) -> Path:
    """Write an adapter as one file for ComfyUI, A1111, Forge and kohya's sd-scripts.

        export("runs/snoopy", "loras/forget-snoopy.safetensors")

    A layer is `lora_unet_<name>.lora_down.weight` (rank, in), `.lora_up.weight` (out, rank) and
    `.alpha`; it adds alpha / rank up @ down to a weight. The names are those of the code that
    each model was published with, as far as kohya's trainer uses them:

    - SD 1.x and 2.x: diffusers' own, with "_" for ".", which all programs translate.
    - SDXL: `input_blocks_4_1_…`, the model's own. kohya's scripts know no others, A1111 looks
      them up as they are, ComfyUI reads both, and diffusers' loader maps them to its own. They
      count two layers a block, as SDXL has.
    - FLUX.1 and SD3: `double_blocks_…`, `single_blocks_…`, `joint_blocks_…`, with queries, keys
      and values in one layer. It has the sum of its parts' ranks, is exact, and takes more room
      than the adapter, since zeros are written, too. diffusers' loader reads FLUX.1's, and splits
      them again. It has no reader for SD3's and loads nothing from them, without an error: there,
      load the folder.

    What was checked: diffusers' loader reads files of SD, SDXL and FLUX.1 and draws the same; of
    SD3, its reader of whole checkpoints cuts the updates into the adapter's own. The other
    programs were read, not run.

    alpha is the adapter's, where diffusers' own converter, `convert_state_dict_to_kohya`, writes
    the rank. Where a UNet's layers differ in alpha, all get the most frequent one and what differs
    goes into the weights, since diffusers reads one alpha for all (see `layers.alike`); so do
    parts of one matrix that are scaled differently.

    Args:
        folder: of an adapter, see `read_adapter`, or its name on the Hub, `user/name`.
        output: the file, which ends in .safetensors; an older one is replaced, whole or not at
            all.
        format: "kohya".
        title: shown by other programs; None: the adapter's name.
        family: "sd", "sdxl", "flux" or "sd3", for an adapter without a recipe; None: by the
            recipe, or by the layers' sizes.

    Returns:
        The file.

    Raises:
        ValueError: if the adapter is not to be trusted or for another model, a layer has no name
            in other programs, or the file cannot be written.
        HubError: see `pull`.
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"unknown format {format!r}: choose {', '.join(get_args(ExportFormat))}")
    path = Path(output)
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"output {str(path)!r} must end in {SUFFIX}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r} is there and is no file")
    found = read_adapter(local_folder(folder))
    known = family_of(found, family)
    layers = named_layers(found, known)
    tensors = tensors_of(layers)
    digest = hashlib.sha256(_data(save(tensors))).hexdigest()
    content = save(tensors, header(found, known, layers, path.stem, digest, title))
    writable_folder(path.parent)
    with atomic_write(path) as file:
        file.write(with_sorted_header(content))
    return path


def tensors_of(layers: dict[str, Layer]) -> dict[str, torch.Tensor]:
    """What is written of each layer."""
    tensors = {}
    for name, (down, up, alpha) in layers.items():
        tensors[f"{PREFIX}{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{PREFIX}{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{PREFIX}{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def _data(content: bytes) -> bytes:
    """The tensors of a safetensors file: what follows 8 bytes of length and the header."""
    return content[8 + int.from_bytes(content[:8], "little") :]
