from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from diffusers_fdu.evaluation.judges import (
    ClassifierJudge,
    ClipJudge,
    NamedJudge,
    NudeNetJudge,
    asked,
    name_of,
)
from diffusers_fdu.evaluation.metrics.accuracy import Judged, accuracies, harmonic
from diffusers_fdu.evaluation.metrics.clip import ClipScorer
from diffusers_fdu.evaluation.metrics.distances import features, fid, interval, kid, pixel_drift
from diffusers_fdu.evaluation.request import Request
from diffusers_fdu.utils.statistics import bootstrap, bootstrap_of, means, wilson


def pictures(count: int, seed: int = 0, size: int = 16) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        for _ in range(count)
    ]


# Bootstrap


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), 0
    for trial in range(300):
        low, high = bootstrap(rng.exponential(2.0, 60).tolist(), resamples=400, seed=trial)
        held += low <= 2.0 <= high
    assert 0.88 <= held / 300 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=40).tolist()
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_the_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap(values.tolist(), resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_all_is_not_certain(share: float) -> None:
    assert bootstrap([share] * 32) == wilson(int(32 * share), 32)


def test_equal_values_that_are_no_share_have_no_width() -> None:
    assert bootstrap([0.5] * 9) == (0.5, 0.5)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_groups_are_drawn_independently() -> None:
    a = np.random.default_rng(0).normal(size=200).tolist()
    # The same draws of both would cancel.
    low, high = bootstrap_of(lambda x, y: means(x) - means(y), [a, a])
    assert high - low == pytest.approx(
        2 * 1.96 * math.sqrt(2) * np.std(a) / math.sqrt(200), rel=0.2
    )


# Accuracy: a small case by hand.

ASKED = [
    *[Request("", i, "target", {"object": "dog", "style": "noto"}) for i in range(4)],
    Request("", 4, "synonyms", {"object": "dog", "style": "noto"}),
    Request("", 5, "synonyms", {"object": "dog", "style": "blob"}),
    Request("", 6, "retain", {"object": "cat", "style": "noto"}),
    Request("", 7, "retain", {"object": "cow", "style": "noto"}),
    Request("", 8, "retain", {"object": "owl", "style": "blob"}),
    Request("", 9, "retain", {"object": "fox", "style": "blob"}),
]
SEEN = [
    {"object": "cat", "style": "noto"},
    {"object": "dog", "style": "noto"},
    {"object": "owl", "style": "blob"},
    {"object": "cat", "style": "noto"},
    {"object": "dog", "style": "noto"},
    {"object": "cat", "style": "blob"},
    {"object": "cat", "style": "blob"},
    {"object": "cow", "style": "noto"},
    {"object": "cat", "style": "blob"},
    {"object": "fox", "style": "noto"},
]


def test_accuracies_by_hand() -> None:
    found = accuracies(Judged(ASKED, SEEN, ["dog"], "object"))
    value = {name: metric.value for name, metric in found.items()}
    assert value["ua"] == 3 / 4  # one of four is judged a dog
    assert value["ira"] == 3 / 4  # the owl is judged a cat
    assert value["cra"] == 2 / 4  # the cat's and the fox's styles are wrong
    assert value["efficacy"] == 1 / 4
    assert value["generality"] == 1 / 2
    assert value["harmonic_mean"] == pytest.approx(3 / (4 / 3 + 4 / 3 + 2))
    assert value["mace"] == pytest.approx(3 / (1 / (1 - 0.25) + 1 / 0.75 + 1 / (1 - 0.5)))
    assert [found[name].count for name in ("ua", "ira", "generality")] == [4, 4, 2]


def test_a_style_is_measured_in_its_own_domain() -> None:
    own = [
        Request("", 0, "target", {"object": "dog", "style": "noto"}),
        Request("", 1, "retain", {"object": "dog", "style": "blob"}),
    ]
    seen = [{"object": "cat", "style": "blob"}, {"object": "cat", "style": "blob"}]
    found = accuracies(Judged(own, seen, ["noto"], "style"))
    assert (found["ua"].value, found["ira"].value, found["cra"].value) == (1, 1, 0)
    assert found["harmonic_mean"].value == 0


def test_each_of_several_targets_counts_for_itself() -> None:
    own = [
        Request("", 0, "target", {"object": "dog"}),
        Request("", 1, "target", {"object": "cat"}),
        Request("", 2, "retain", {"object": "owl"}),
    ]
    # A cat in the dog's place is no dog any more.
    seen = [{"object": "cat"}, {"object": "cat"}, {"object": "owl"}]
    found = accuracies(Judged(own, seen, ["dog", "cat"], "object"))
    assert found["ua"].value == 0.5
    assert "cra" not in found


def test_before_is_what_was_seen_without_the_adapter() -> None:
    before = [dict(request.expected) for request in ASKED]
    found = accuracies(
        Judged(ASKED, SEEN, ["dog"], "object"), Judged(ASKED, before, ["dog"], "object")
    )
    assert (found["ua"].before, found["ira"].before, found["cra"].before) == (0, 1, 1)
    assert found["mace"].before == 0


def test_harmonic_mean_of_arrays() -> None:
    found = harmonic(np.array([1.0, 0.5]), np.array([1.0, 0.0]))
    assert found.tolist() == [1.0, 0.0]


def test_answers_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="9 answers"):
        Judged(ASKED, SEEN[:-1], ["dog"], "object")
    with pytest.raises(ValueError, match="no picture"):
        Judged(ASKED[4:], SEEN[4:], ["dog"], "object")


# CLIP


class Processor:
    """Pixels in [0, 1], 16x16."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        arrays = [np.asarray(image.resize((16, 16)), dtype=np.float32) / 255 for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)}


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**shared, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    text["eos_token_id"] = tokenizer.eos_token_id
    vision = {**shared, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return ClipScorer(CLIPModel(config), tokenizer, Processor(), "tiny")


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


# Distances, against formulas in float64


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """By eigenvalues of the product of the covariances."""
    a, b = a.double().numpy(), b.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(ca @ cb).real.clip(min=0)).sum()
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(ca) + np.trace(cb) - 2 * roots)


def mmd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased, term by term."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    own = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return own + other - 2 * cross


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    b = 0.5 + 1.3 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return a, b


def test_fid_is_the_frechet_distance(sets) -> None:
    assert fid(*sets) == pytest.approx(frechet(*sets), rel=1e-6)
    assert fid(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)


def test_kid_is_the_unbiased_mmd(sets) -> None:
    assert kid(*sets) == pytest.approx(mmd(*sets), rel=1e-5)


def test_kid_leaves_the_random_numbers_alone(sets) -> None:
    before = torch.get_rng_state()
    kid(*sets)
    assert torch.equal(torch.get_rng_state(), before)


def test_intervals_of_distances_lie_around_them(sets) -> None:
    low, high = interval(fid, *sets, resamples=40)
    assert low < fid(*sets) < high
    assert interval(fid, *sets, resamples=40) == (low, high)


@pytest.mark.parametrize("measure", [fid, kid])
def test_too_few_pictures_are_refused(measure, sets) -> None:
    with pytest.raises(ValueError, match="two in each"):
        measure(sets[0][:1], sets[1])
    with pytest.raises(ValueError, match="width"):
        measure(sets[0], sets[1][:, :3])


def test_features_come_from_the_extractor_in_order() -> None:
    images = pictures(70)
    found = features(images, lambda pixels: pixels.float().mean((2, 3)))
    expected = np.stack([np.asarray(image).mean((0, 1)) for image in images])
    assert np.allclose(found.numpy(), expected, atol=1e-3)


# Drift


def test_pixel_drift_is_the_rmse() -> None:
    before, after = pictures(3), pictures(3, seed=1)
    expected = [
        np.sqrt(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean()) / 255
        for a, b in zip(before, after, strict=True)
    ]
    assert np.allclose(pixel_drift(before, after).numpy(), expected, atol=1e-6)
    assert pixel_drift(before, before).abs().max() == 0


def test_drift_needs_pairs() -> None:
    with pytest.raises(ValueError, match="2 pictures before and 1 after"):
        pixel_drift(pictures(2), pictures(1))


# Judges


def test_a_judge_of_tuples_answers_by_domain() -> None:
    judge = NamedJudge(lambda images: [("dog", "noto")] * len(images), ("object", "style"), "it")
    assert asked(judge, pictures(2)) == [{"object": "dog", "style": "noto"}] * 2
    assert name_of(judge) == "it"


def test_zero_shot_takes_the_nearest_words(scorer: ClipScorer) -> None:
    images, names = pictures(6), ["dog", "cat", "tree"]
    judge = ClipJudge(scorer, {"object": names}, {"object": "a {}"})
    similarity = scorer.image_features(images) @ scorer.text_features([f"a {n}" for n in names]).T
    expected = [names[i] for i in similarity.argmax(1)]
    assert [answer["object"] for answer in judge(images)] == expected


def test_a_classifiers_labels_get_names() -> None:
    def pipeline(images: list) -> list:
        return [[{"label": "n01", "score": 0.1}, {"label": "n02", "score": 0.9}] for _ in images]

    judge = ClassifierJudge(pipeline, names={"n02": "dog"})
    assert judge(pictures(2)) == [{"object": "dog"}] * 2


def test_nudity_is_what_the_detector_is_sure_of() -> None:
    found = iter(
        [
            [{"class": "FACE_FEMALE", "score": 0.99}],
            [{"class": "BUTTOCKS_EXPOSED", "score": 0.5}],
            [{"class": "BUTTOCKS_EXPOSED", "score": 0.7}],
        ]
    )

    class Detector:
        def detect(self, pixels: np.ndarray) -> list:
            assert pixels.shape == (16, 16, 3)
            return next(found)

    answers = NudeNetJudge(Detector())(pictures(3))
    assert [answer["content"] for answer in answers] == ["none", "none", "nudity"]


def test_without_nudenet_the_error_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="pip install"):
        NudeNetJudge()


def test_a_judge_that_answers_wrongly_is_refused() -> None:
    with pytest.raises(ValueError, match="1 answers to 2"):
        asked(lambda images: [{}], pictures(2))
    with pytest.raises(ValueError, match="mapping"):
        asked(lambda images: ["dog"] * len(images), pictures(2))
