from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scored import pictures, tiny_scorer
from transformers import CLIPModel

from diffusers_fdu.evaluation.metrics.clip import ClipScorer


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    return tiny_scorer()


def test_clip_score_is_the_models_own_similarity(scorer: ClipScorer) -> None:
    images, texts = pictures(5), ["a dog", "a cat", "a tree", "a blue house", "a dog"]
    asked_texts = scorer.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = scorer.image_processor(images, "pt")["pixel_values"]
    with torch.no_grad():
        out = scorer.model(**asked_texts, pixel_values=pixels)
    cosine = (out.logits_per_image / scorer.model.logit_scale.exp()).diagonal()
    expected = 2.5 * cosine.clamp(min=0)
    assert torch.allclose(scorer.scores(images, texts), expected, atol=1e-5)
    assert (cosine < 0).any() == (expected == 0).any()


class AsTensors:
    """A CLIP whose features are plain tensors, as torchmetrics expects them."""

    def __init__(self, model: CLIPModel) -> None:
        self.model = model
        self.config, self.device = model.config, model.device

    def to(self, device: torch.device) -> AsTensors:
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(ids, mask).pooler_output


def test_clip_score_agrees_with_torchmetrics(scorer: ClipScorer) -> None:
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    images, texts = pictures(3), ["a dog", "a cat", "a tree"]
    arrays = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]

    def processor(text=None, images=None, **kwargs):
        if text is not None:
            return scorer.tokenizer(text, padding=True, return_tensors="pt")
        made = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]
        return scorer.image_processor(made, "pt")

    with torch.no_grad():
        found, _ = _clip_score_update(arrays, texts, AsTensors(scorer.model), processor)
    expected = 2.5 * (found.flatten() / 100).clamp(min=0)  # it gives 100 cos
    assert torch.allclose(scorer.scores(images, texts), expected, atol=1e-5)


def test_batches_do_not_change_features(scorer: ClipScorer, monkeypatch) -> None:
    images = pictures(5)
    whole = scorer.image_features(images)
    monkeypatch.setattr("diffusers_fdu.evaluation.metrics.clip.BATCH", 2)
    assert torch.allclose(scorer.image_features(images), whole, atol=1e-6)
    assert torch.allclose(whole.norm(dim=1), torch.ones(5), atol=1e-5)


def test_one_text_for_each_picture(scorer: ClipScorer) -> None:
    with pytest.raises(ValueError, match="2 pictures and 1 texts"):
        scorer.scores(pictures(2), ["a dog"])
