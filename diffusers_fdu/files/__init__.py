"""Adapters as files: safetensors alone."""

from .adapter import PEFT_CONFIG_NAME, PEFT_WEIGHTS_NAME, WEIGHTS_NAME, AdapterFile, Format
from .reading import PICKLES, read_adapter
from .writing import with_sorted_header, write_adapter

__all__ = [
    "PEFT_CONFIG_NAME",
    "PEFT_WEIGHTS_NAME",
    "PICKLES",
    "WEIGHTS_NAME",
    "AdapterFile",
    "Format",
    "read_adapter",
    "with_sorted_header",
    "write_adapter",
]
