"""The judge of the embedded model: which concept, in which style, does a picture show?"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from .vocabulary import CONCEPTS, STYLES


class JudgeNetwork(nn.Module):
    """A small convolutional classifier with two heads, for concepts and for styles.

    It was trained on random compositions of the same art as the embedded model, never on what the
    model generates.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 160)
        layers: list[nn.Module] = []
        for width_in, width in zip(widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(width_in, width, 3, stride=2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=8 if width > 32 else 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.concept = nn.Linear(widths[-1], len(CONCEPTS))
        self.style = nn.Linear(widths[-1], len(STYLES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of concept (B, 32) and style (B, 4) for pixels (B, 3, 64, 64) in [0, 1]."""
        features = self.features(pixels * 2 - 1).mean((2, 3))
        return self.concept(features), self.style(features)


class EmojiJudge:
    """Says which concept, in which style, each picture shows; `load_emoji_judge` loads one.

    Example:
        >>> from diffusers_fdu.emoji import caption, load_emoji_judge
        >>> from diffusers_fdu.pipelines.generate import generate
        >>> images = generate(pipe, [caption("panda", "noto")], seeds=[0], guidance_scale=4.0)
        >>> load_emoji_judge()(images)
        [('panda', 'noto')]
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> list[tuple[str, str]]:
        """The most likely (concept, style) of each PIL image, which is resized to 64x64."""
        names: list[tuple[str, str]] = []
        for start in range(0, len(images), 256):
            batch = images[start : start + 256]
            arrays = [np.array(image.convert("RGB").resize((64, 64))) for image in batch]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            concept, style = self.network(pixels.float() / 255)
            indices = zip(concept.argmax(1).tolist(), style.argmax(1).tolist(), strict=True)
            names += [(CONCEPTS[c], STYLES[s]) for c, s in indices]
        return names
