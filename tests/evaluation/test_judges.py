from __future__ import annotations

import numpy as np
import pytest
from scored import pictures, tiny_scorer

from diffusers_fdu.evaluation.judges import (
    ClassifierJudge,
    ClipJudge,
    NamedJudge,
    NudeNetJudge,
    judge_images,
    judge_name,
)


def test_a_judge_of_tuples_answers_by_domain() -> None:
    judge = NamedJudge(lambda images: [("dog", "noto")] * len(images), ("object", "style"), "it")
    assert judge_images(judge, pictures(2)) == [{"object": "dog", "style": "noto"}] * 2
    assert judge_name(judge) == "it"


def test_zero_shot_takes_the_nearest_words() -> None:
    scorer = tiny_scorer()
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
        judge_images(lambda images: [{}], pictures(2))
    with pytest.raises(ValueError, match="mapping"):
        judge_images(lambda images: ["dog"] * len(images), pictures(2))
