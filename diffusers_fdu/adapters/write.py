"""Adapters written as diffusers and PEFT read them."""

import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from ..utils.io import json_text
from .adapter_file import FILE_NAMES, PEFT_CONFIG_NAME, PEFT_PREFIX, Format


def write_adapter(
    folder: Path, format: Format, component: str, state: dict[str, Tensor], config: dict[str, Any]
) -> None:
    """Write an adapter to a folder that exists; an older one there stays whole if that fails.

    "diffusers" is the format that `pipe.load_lora_weights(folder)` reads, "peft" the one that
    `PeftModel.from_pretrained(denoiser, folder)` reads. See `AdapterFile` for state and config.
    """
    layers = {name: value.contiguous() for name, value in state.items()}
    *_, weights_name = FILE_NAMES[format]
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        temporary = Path(directory)
        if format == "peft":
            prefixed = {f"{PEFT_PREFIX}{key}": value for key, value in layers.items()}
            save_file(prefixed, temporary / weights_name, {"format": "pt"})
            content = json_text({"peft_type": "LORA", "inference_mode": True, **config})
            (temporary / PEFT_CONFIG_NAME).write_text(content)
        else:
            # A file of a second denoiser looks like one of the first: who loads it says which.
            prefix = component.removesuffix("_2")
            loader = StableDiffusionLoraLoaderMixin  # all pipelines' files are written alike
            loader.write_lora_layers(
                loader.pack_weights(layers, prefix),
                directory,
                is_main_process=True,
                weight_name=weights_name,
                save_function=None,  # type: ignore[arg-type]  # its own
                safe_serialization=True,
                lora_adapter_metadata={f"{prefix}.{key}": value for key, value in config.items()},
            )
        # As a new file, since none but the owner may read what safetensors writes.
        path = temporary / "sorted"
        path.write_bytes(with_sorted_header((temporary / weights_name).read_bytes()))
        path.replace(folder / weights_name)
        if format == "peft":
            (temporary / PEFT_CONFIG_NAME).replace(folder / PEFT_CONFIG_NAME)
    # What the folder holds in the other format is another adapter.
    for other in FILE_NAMES["diffusers" if format == "peft" else "peft"]:
        (folder / other).unlink(missing_ok=True)


def with_sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys sorted; they are written in a random order.

    The format: 8 bytes of length, a JSON header padded with spaces, the data.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + content[end:]
