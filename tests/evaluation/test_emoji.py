from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

from diffusers_fdu import Concept, FDUnlearner
from diffusers_fdu.emoji.loading import WEIGHTS, load_emoji_judge, load_emoji_pipeline
from diffusers_fdu.emoji.vocabulary import BACKGROUNDS, CONCEPTS, STYLES, caption
from diffusers_fdu.evaluation.emoji import (
    Tradeoff,
    Verdict,
    accuracy,
    cells,
    draw,
    judge_cells,
    scores,
)
from examples.emoji_training.art import COLOURS

DRAWING = {"num_inference_steps": 15}  # the stated figures are of 25, and hold with these
HALF = [i for i in range(len(cells())) if (i + i // len(STYLES)) % 2]  # of every row and column


@pytest.fixture(scope="module")
def judge():
    return load_emoji_judge()


@pytest.fixture(scope="module")
def base():
    """Verdicts of the untouched model on every cell, one seed."""
    return judge_cells(load_emoji_pipeline(), load_emoji_judge(), cells(), [7], **DRAWING)


def test_captions() -> None:
    assert caption("dog") == "a dog emoji"
    assert caption("owl", "blob", "red") == "an owl emoji in blob style on a red background"


def test_vocabulary_sizes() -> None:
    assert (len(set(CONCEPTS)), len(set(STYLES)), len(set(BACKGROUNDS))) == (32, 4, 8)


def test_weights_are_small_half_precision_safetensors() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pkl")]
    pipe = load_emoji_pipeline(torch_dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16


def test_every_word_of_the_vocabulary_is_one_token() -> None:
    tokenizer = load_emoji_pipeline().tokenizer
    for word in (*CONCEPTS, *STYLES, *BACKGROUNDS):
        assert len(tokenizer.tokenize(word)) == 1, word


def test_it_draws_what_it_is_asked(base) -> None:
    """Within 4 standard errors of the figure that the weights ship with."""
    figures = json.loads((WEIGHTS / "figures.json").read_text())["generated"]
    for got, stated in zip(accuracy(base), (figures["concept"], figures["style"]), strict=True):
        error = math.sqrt(max(stated * (1 - stated), 0.01) / len(base))
        assert abs(got - stated) < 4 * error


def test_backgrounds_have_their_colour() -> None:
    pipe = load_emoji_pipeline()
    names = ["white", "black", "red", "green", "blue", "yellow"]
    images = draw(pipe, [caption("apple", "noto", name) for name in names], [3] * len(names))
    wanted = {name: COLOURS[name] for name in names}
    for name, image in zip(names, images, strict=True):
        corner = image.crop((0, 0, 6, 6)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        nearest = min(
            wanted, key=lambda n: sum((a - b) ** 2 for a, b in zip(corner, wanted[n], strict=True))
        )
        assert nearest == name


def test_the_judge_takes_any_picture(judge) -> None:
    images = [Image.new("RGB", (64, 64), "red"), Image.new("L", (200, 100), 80)]
    answers = judge(images)
    assert all(c in CONCEPTS and s in STYLES for c, s in answers) and judge([]) == []


def test_scores_by_hand() -> None:
    verdicts = [
        Verdict(("dog", "noto"), ("dog", "noto")),
        Verdict(("dog", "blob"), ("cat", "blob")),
        Verdict(("cat", "noto"), ("cat", "blob")),
        Verdict(("pig", "blob"), ("cow", "blob")),
        Verdict(("pig", "noto"), ("pig", "noto")),
    ]
    dog = scores(verdicts, "dog")
    assert (dog.ua, dog.ira, dog.cra) == pytest.approx((1 / 2, 2 / 3, 2 / 3))
    blob = scores(verdicts, "blob")
    assert (blob.ua, blob.ira, blob.cra) == pytest.approx((0, 2 / 3, 1))
    assert accuracy(verdicts) == pytest.approx((3 / 5, 4 / 5))
    with pytest.raises(ValueError, match="'unicorn'"):
        scores(verdicts, "unicorn")


def test_unlearning_a_style(base, judge) -> None:
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False, trajectories=24, steps=40)
    worker.unlearn(Concept("blob", "noto", kind="style"))
    asked = [cells()[i] for i in HALF]
    after = scores(judge_cells(pipe, judge, asked, [7], **DRAWING), "blob")
    before = scores([base[i] for i in HALF], "blob")
    assert before.ua < 0.25 and after.ua > 0.8
    assert after.ira >= 0.88 * before.ira and after.cra >= 0.9 * before.cra


def test_unlearning_a_concept_with_the_defaults(base, judge) -> None:
    """The main job: the dog is gone, the rest is not."""
    pipe = load_emoji_pipeline()
    worker = FDUnlearner(pipe, {"guidance_scale": 4.0}, progress=False)
    worker.unlearn("dog", "cat", f="kl")
    asked = [cells()[i] for i in HALF]
    after = scores(judge_cells(pipe, judge, asked, [7], **DRAWING), "dog")
    before = scores([base[i] for i in HALF], "dog")
    dogs = judge_cells(pipe, judge, [("dog", style) for style in STYLES], range(5), **DRAWING)
    assert sum(v.seen[0] == "dog" for v in dogs) <= 1
    assert after.ira >= 0.88 * before.ira and after.cra >= 0.88 * before.cra
    pipe.unload_lora_weights()
    again = judge_cells(pipe, judge, cells()[:16], [7], **DRAWING)
    assert again == base[:16]


def test_a_tradeoff_is_ua_and_what_is_kept() -> None:
    pipe, judge = load_emoji_pipeline(), load_emoji_judge()
    once = Tradeoff("dog", 2, num_inference_steps=2)
    rest = [cell for cell in cells() if "dog" not in cell]
    verdicts = judge_cells(pipe, judge, cells("dog"), range(100, 102), num_inference_steps=2)
    verdicts += judge_cells(pipe, judge, rest, [100], num_inference_steps=2)
    found = scores(verdicts, "dog")
    assert once(pipe) == (found.ua, (found.ira + found.cra) / 2)
    assert Tradeoff("dog").cache_key != once.cache_key
    with pytest.raises(ValueError, match="no concept or style"):
        Tradeoff("unicorn")
