"""The Hugging Face Hub: push an adapter, pull one, find one.

What is pushed loads in plain diffusers by `pipe.load_lora_weights("user/name")`. What is pulled is
safetensors and JSON alone, and is checked before it is used.
"""

from .card import render_card
from .errors import HubError
from .find import FoundAdapter, find_adapters
from .pictures import draw_pictures
from .pull import local_folder, pull
from .push import check_pushable, push

__all__ = [
    "FoundAdapter",
    "HubError",
    "check_pushable",
    "draw_pictures",
    "find_adapters",
    "local_folder",
    "pull",
    "push",
    "render_card",
]
