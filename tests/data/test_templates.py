from __future__ import annotations

import random

from diffusers_fdu.data.templates import fill, fill_words, without
from diffusers_fdu.pipelines.tokenizers import vocabulary


def rng() -> random.Random:
    return random.Random(0)


def test_articles_follow_the_subject() -> None:
    assert fill("a {} on a table", "apple") == "an apple on a table"
    assert fill("a {}", "dog") == "a dog"
    assert fill("banana {}", "apple") == "banana apple"
    both = fill_words("in {word} style on a {word} background", ["apple"], rng())
    assert both == "in apple style on an apple background"


def test_vocabulary_is_whole_words(pipe) -> None:
    from conftest import WORDS as KNOWN

    assert vocabulary(pipe) == sorted(KNOWN)
    assert vocabulary(object()) == []


def test_without_compares_words_not_letters() -> None:
    assert without(["car", "carrot"], ["Car"]) == ["carrot"]


def test_without_leaves_plurals_out_too() -> None:
    words = ["dogs", "dog", "foxes", "doge", "tree"]
    assert without(words, ["Dog,", "fox"]) == ["doge", "tree"]
