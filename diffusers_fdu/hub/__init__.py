"""The Hugging Face Hub: push an adapter, pull one, find one.

What is pushed loads in plain diffusers by `pipe.load_lora_weights("user/name")`. What is pulled is
safetensors and JSON alone, and is checked before it is used.
"""

from ..adapters.download import local_folder, pull
from ..utils.hub_errors import HubError
from .card import render_card
from .preview import draw_pictures
from .push import push
from .search import FoundAdapter, find_adapters

__all__ = [
    "FoundAdapter",
    "HubError",
    "draw_pictures",
    "find_adapters",
    "local_folder",
    "pull",
    "push",
    "render_card",
]
