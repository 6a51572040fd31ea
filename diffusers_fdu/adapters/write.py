"""Adapters written as diffusers and PEFT read them."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..utils.io import atomic_write, json_text
from .adapter_file import FILE_NAMES, PEFT_CONFIG_NAME, PEFT_PREFIX, Format
from .read import METADATA_NAME


def write_adapter(
    folder: Path, format: Format, component: str, state: dict[str, Tensor], config: dict[str, Any]
) -> None:
    """Write an adapter to a folder that exists; an older one there stays whole if that fails.

    "diffusers" is the format that `pipe.load_lora_weights(folder)` reads, "peft" the one that
    `PeftModel.from_pretrained(denoiser, folder)` reads. See `AdapterFile` for state and config.
    """
    # A file of a second denoiser looks like one of the first: who loads it says which.
    prefix = PEFT_PREFIX if format == "peft" else f"{component.removesuffix('_2')}."
    tensors = {f"{prefix}{key}": value.contiguous() for key, value in state.items()}
    metadata = {"format": "pt"}
    if format == "diffusers":
        prefixed = {f"{prefix}{key}": value for key, value in config.items()}
        metadata[METADATA_NAME] = json.dumps(prefixed, indent=2, sort_keys=True)
    with ExitStack() as files:  # both are whole before either takes its place
        file = files.enter_context(atomic_write(folder / FILE_NAMES[format][-1]))
        file.write(with_sorted_header(save(tensors, metadata)))
        if format == "peft":
            text = json_text({"peft_type": "LORA", "inference_mode": True, **config})
            files.enter_context(atomic_write(folder / PEFT_CONFIG_NAME)).write(text.encode())
    # What the folder holds in the other format is another adapter.
    for other in FILE_NAMES["diffusers" if format == "peft" else "peft"]:
        (folder / other).unlink(missing_ok=True)


def with_sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header's keys sorted; they are written in a random order.

    The format: 8 bytes of length, a JSON header padded with spaces, the data.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]
