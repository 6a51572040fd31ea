"""An adapter as one file that other programs read, and such a file read back."""

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import save

from ...utils.io import atomic_write, parse_json_object, writable_folder
from ..adapter_file import Layer
from ..download import Source, local_folder
from ..read import read_adapter, read_safetensors
from ..write import with_sorted_header
from .header import RECIPE_KEY, family_of, header
from .layers import named_layers

ExportFormat = Literal["kohya"]
PREFIX = "lora_unet_"  # of every denoiser's layers, transformers' too
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
SUFFIX = ".safetensors"


def export(
    folder: Source,
    output: str | Path,
    format: str = "kohya",
    *,
    title: str | None = None,
    family: str | None = None,
) -> Path:
    """Write an adapter as one file for ComfyUI, A1111, Forge and kohya's sd-scripts.

    A layer is `lora_unet_<name>.lora_down.weight` (rank, in), `.lora_up.weight` (out, rank) and
    `.alpha`; it adds alpha / rank up @ down to a weight. Names are those of the models' own code:

    - SD 1.x and 2.x: diffusers' own, with "_" for ".", which all programs translate.
    - SDXL: `input_blocks_4_1_…`; kohya's scripts know no others, and all programs read these.
    - FLUX.1 and SD3: `double_blocks_…`, `single_blocks_…`, `joint_blocks_…`, with queries, keys
      and values in one layer, whose rank is the sum of its parts'. That is exact, and takes more
      room than the adapter. diffusers' loader reads FLUX.1's; it has no reader for SD3's and
      loads nothing from them, without an error: there, load the folder.

    What was checked: diffusers' loader reads files of SD, SDXL and FLUX.1 and draws the same; of
    SD3, its reader of whole checkpoints cuts the updates into the adapter's own. The other
    programs were read, not run.

    alpha is the adapter's, where diffusers' own `convert_state_dict_to_kohya` writes the rank.
    Where a UNet's layers, or the parts of one matrix, differ in alpha, the difference goes into
    the weights, since diffusers reads one alpha for all.

    Args:
        folder: an adapter's folder, or its name on the Hub, `user/name`.
        output: the file, which ends in .safetensors; an older one is replaced, whole or not at
            all.
        format: "kohya".
        title: the title that other programs show; by default the adapter's name.
        family: "sd", "sdxl", "flux" or "sd3", for an adapter whose recipe does not tell.

    Returns:
        The file.

    Raises:
        ValueError: if the adapter is not to be trusted or for another model, a layer has no name
            in other programs, or the file cannot be written.
        HubError: with the fix, if the Hub or the network fails.

    Example:
        >>> export("forget-dog", "loras/forget-dog.safetensors").name
        'forget-dog.safetensors'
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"unknown format {format!r}: choose {', '.join(get_args(ExportFormat))}")
    path = Path(output)
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"output {str(path)!r} must end in {SUFFIX}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r} is there and is no file")
    adapter_file = read_adapter(local_folder(folder))
    model_family = family_of(adapter_file, family)
    layers = named_layers(adapter_file, model_family)
    tensors = {}
    for name, (down, up, alpha) in layers.items():
        tensors[f"{PREFIX}{name}{DOWN}"] = down.contiguous()
        tensors[f"{PREFIX}{name}{UP}"] = up.contiguous()
        tensors[f"{PREFIX}{name}{ALPHA}"] = torch.tensor(alpha, dtype=torch.float32)
    plain = save(tensors)
    # The tensors follow 8 bytes of length and the header; that length depends on no metadata.
    digest = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
    metadata = header(adapter_file, model_family, layers, path.stem, digest, title)
    writable_folder(path.parent)
    with atomic_write(path) as file:
        file.write(with_sorted_header(save(tensors, metadata)))
    return path


class Exported(NamedTuple):
    """What a file in kohya's layout holds; its recipe is empty if that is not known."""

    layers: dict[str, Layer]
    header: dict[str, str]
    recipe: dict[str, Any]


def read_exported(path: Path) -> Exported:
    """Read a LoRA in kohya's layout; nothing in it is executed."""
    tensors, metadata = read_safetensors(path)
    layers = {}
    for name in [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]:
        down, up = tensors.pop(f"{name}{DOWN}"), tensors.pop(f"{name}{UP}", None)
        alpha = tensors.pop(f"{name}{ALPHA}", torch.tensor(float(down.shape[0])))
        if up is None or down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"{str(path)!r} is no LoRA: the halves of {name!r} do not fit")
        layers[name] = Layer(down, up, float(alpha))
    if tensors or not layers:
        other = min(tensors, default="nothing")
        raise ValueError(f"{str(path)!r} is no LoRA in kohya's layout: it holds {other!r}")
    try:
        recipe = parse_json_object(metadata.get(RECIPE_KEY) or "{}", "the recipe")
    except ValueError:
        recipe = {}
    return Exported(layers, metadata, recipe)
