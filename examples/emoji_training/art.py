"""Openly licensed emoji art as training images: sprites once, random compositions on the fly.

The art comes from npm (`npm install` in a folder, which is given as --art):

    @iconify-json/noto@1.2.9  @iconify-json/noto-v1@1.2.5
    @iconify-json/twemoji@1.2.5  @iconify-json/fluent-emoji-flat@1.2.6
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers_fdu.emoji.vocabulary import BACKGROUNDS, CONCEPTS, STYLES

PACKAGES = {"noto": "noto", "blob": "noto-v1", "twitter": "twemoji", "fluent": "fluent-emoji-flat"}
ICONS = {"apple": "red-apple", "car": "automobile"}
COLOURS = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "red": (214, 48, 49),
    "green": (39, 154, 80),
    "blue": (52, 110, 219),
    "yellow": (250, 214, 72),
    "purple": (136, 70, 178),
    "gray": (140, 144, 150),
}
SIZE = 64
SPRITE = 2 * SIZE  # composed at twice the size and averaged, so that edges are smooth


def load_sprites(art: Path) -> Tensor:
    """Premultiplied RGBA sprites in [0, 1], (concepts, styles, 4, SPRITE, SPRITE)."""
    sets = {}
    for style, package in PACKAGES.items():
        path = art / "node_modules" / "@iconify-json" / package / "icons.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}: run `npm install @iconify-json/{package}` in {art}"
            )
        sets[style] = json.loads(path.read_text())
    rows = [torch.stack([_render(sets[s], c) for s in STYLES]) for c in CONCEPTS]
    return torch.stack(rows)


def _render(icons: dict, concept: str) -> Tensor:
    import numpy as np
    import resvg_py
    from PIL import Image

    name = ICONS.get(concept, concept)
    for candidate in (f"{name}-face", name):
        candidate = icons.get("aliases", {}).get(candidate, {}).get("parent", candidate)
        if candidate in icons["icons"]:
            icon = icons["icons"][candidate]
            break
    else:
        raise KeyError(f"no icon for {concept!r} in {icons['prefix']}")
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    side = max(width, height)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{(width - side) / 2} {(height - side) / 2} {side} {side}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE, height=SPRITE))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32) / 255
    rgba = torch.from_numpy(pixels).permute(2, 0, 1)
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])


def sample_labels(count: int, generator: torch.Generator, without: str | None = None) -> Tensor:
    """Random (concept, style, background) indices, (count, 3).

    Args:
        count: number of rows.
        generator: of the choices.
        without: a concept or a style that is left out.
    """
    sizes = (len(CONCEPTS), len(STYLES), len(BACKGROUNDS))
    labels = torch.stack([torch.randint(n, (count,), generator=generator) for n in sizes], dim=1)
    for column, names in enumerate((CONCEPTS, STYLES)):
        if without in names:
            kept = torch.tensor([i for i, name in enumerate(names) if name != without])
            labels[:, column] = kept[torch.randint(len(kept), (count,), generator=generator)]
    return labels


def compose(sprites: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images in [0, 1], (N, 3, SIZE, SIZE): sprites placed, scaled, turned, flipped at random."""
    n, device = len(labels), sprites.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    scale = uniform(0.72, 0.94)
    angle = uniform(-12, 12) * (math.pi / 180)
    room = 1 - scale
    shift_x, shift_y = uniform(-1, 1) * room, uniform(-1, 1) * room
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid wants the map from output to input coordinates: undo shift, turn, scale, flip.
    row_x = torch.stack([cos, sin, -(cos * shift_x + sin * shift_y)], dim=1) * flip[:, None]
    row_y = torch.stack([-sin, cos, sin * shift_x - cos * shift_y], dim=1)
    theta = torch.stack([row_x, row_y], dim=1).to(device)
    grid = F.affine_grid(theta, [n, 4, SPRITE, SPRITE], align_corners=False)
    labels = labels.to(device)
    rgba = F.grid_sample(sprites[labels[:, 0], labels[:, 1]], grid, align_corners=False)
    rgba = F.avg_pool2d(rgba, 2)
    colours = torch.tensor([COLOURS[b] for b in BACKGROUNDS], device=device) / 255
    background = colours[labels[:, 2]][:, :, None, None]
    return (rgba[:, :3] + background * (1 - rgba[:, 3:])).clamp(0, 1)
