"""How well pictures fit words, by a CLIP.

    CLIP score    = 2.5 max(cos(image, text), 0)            Hessel et al., arXiv 2104.08718
    CLIP accuracy = share of pictures nearer to the target's words than to the anchor's

The second is concept ablation's (Kumari et al., arXiv 2303.13516): small when the concept is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

WEIGHT = 2.5
BATCH = 64


class ClipScorer:
    """Compares pictures and words with a `CLIPModel` of transformers; `name` is for reports."""

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, name: str = "CLIP"
    ) -> None:
        self.model = model.eval()
        self.tokenizer, self.image_processor, self.name = tokenizer, image_processor, name

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "cpu") -> ClipScorer:
        """Load a CLIP from a folder or by its name on the Hub."""
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        model: Any = CLIPModel.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = CLIPImageProcessor.from_pretrained(source)
        return cls(model.to(device), tokenizer, processor, str(source))

    @torch.no_grad()
    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Unit vectors of pictures, (N, D), float32 on the CPU."""
        features = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.image_processor(batch, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self.model.device, self.model.dtype)
            features.append(_unit_vectors(self.model.get_image_features(pixels)))
        return torch.cat(features)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (N, D), float32 on the CPU."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return _unit_vectors(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def scores(self, images: Sequence[Image], texts: Sequence[str]) -> Tensor:
        """CLIP score of each picture and its own text, (N,); ValueError if the numbers differ."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts: pass one for each")
        unique = list(dict.fromkeys(texts))
        words = self.text_features(unique)[[unique.index(text) for text in texts]]
        return WEIGHT * (self.image_features(images) * words).sum(1).clamp(min=0)


def _unit_vectors(output: Any) -> Tensor:
    # Some versions of transformers return the features, others an output that holds them.
    features = output if torch.is_tensor(output) else output.pooler_output
    return F.normalize(features.float().cpu(), dim=-1)
