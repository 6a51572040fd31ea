"""Adapters written as diffusers and PEFT read them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from safetensors.torch import save_file
from torch import Tensor

from ..utils.io import json_text
from .adapter_file import PEFT_CONFIG_NAME, PEFT_PREFIX, PEFT_WEIGHTS_NAME, WEIGHTS_NAME, Format


def write_adapter(
    folder: Path, format: Format, component: str, state: dict[str, Tensor], config: dict[str, Any]
) -> None:
    """Write an adapter; an older one in the folder stays whole if that fails.

    Args:
        folder: an existing folder.
        format: "diffusers": `pytorch_lora_weights.safetensors`, as
            `pipe.load_lora_weights(folder)` reads it. "peft": `adapter_model.safetensors` and
            `adapter_config.json`, as `PeftModel.from_pretrained(denoiser, folder)` reads them.
        component: "unet", "transformer" or "transformer_2".
        state: see `AdapterFile`.
        config: see `AdapterFile`.
    """
    layers = {name: value.contiguous() for name, value in state.items()}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if format == "peft":
            name, path = PEFT_WEIGHTS_NAME, Path(temporary) / PEFT_CONFIG_NAME
            named = {f"{PEFT_PREFIX}{key}": value for key, value in layers.items()}
            save_file(named, Path(temporary) / name, {"format": "pt"})
            content = {"peft_type": "LORA", "inference_mode": True, **config}
            path.write_text(json_text(content))
        else:
            name = WEIGHTS_NAME
            # One of a second denoiser looks like one of the first: it is told when loading.
            kind = component.removesuffix("_2")
            loader = StableDiffusionLoraLoaderMixin  # all pipelines' are written alike
            loader.write_lora_layers(
                loader.pack_weights(layers, kind),
                temporary,
                is_main_process=True,
                weight_name=name,
                save_function=None,  # type: ignore[arg-type]  # its own
                safe_serialization=True,
                lora_adapter_metadata={f"{kind}.{key}": value for key, value in config.items()},
            )
        # A new file, since safetensors lets nobody but the owner read its own.
        path = Path(temporary) / "sorted"
        path.write_bytes(with_sorted_header((Path(temporary) / name).read_bytes()))
        path.replace(folder / name)
        if format == "peft":
            (Path(temporary) / PEFT_CONFIG_NAME).replace(folder / PEFT_CONFIG_NAME)
    # What the folder held before in the other format is another adapter.
    others = (WEIGHTS_NAME,) if format == "peft" else (PEFT_WEIGHTS_NAME, PEFT_CONFIG_NAME)
    for other in others:
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
