from __future__ import annotations

import random

import pytest

from diffusers_fdu import Concept
from diffusers_fdu.concepts import TEMPLATES, fill, fill_words, retain_prompts, vocabulary, without

WORDS = ["cat", "dog", "apple", "blue"]


def rng() -> random.Random:
    return random.Random(0)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_pairs_differ_in_the_concept_alone(kind) -> None:
    pairs = Concept("dog", "cat", kind=kind).prompt_pairs(40, ["blue", "tree"], rng())
    assert len(pairs) == 40
    for target, anchor in pairs:
        assert target.replace("dog", "cat") == anchor and "{" not in target


def test_no_anchor_is_the_empty_prompt() -> None:
    assert {a for _, a in Concept("dog").prompt_pairs(12, WORDS, rng())} == {""}


def test_fillers_are_never_the_concepts() -> None:
    prompts = Concept("dog", "cat").prompt_pairs(300, WORDS, rng())
    assert all(t.split().count("dog") == 1 and "cat" not in t.split() for t, _ in prompts)
    assert any("apple" in t for t, _ in prompts)


def test_articles_follow_the_subject() -> None:
    assert fill("a {} on a table", "apple") == "an apple on a table"
    assert fill("a {}", "dog") == "a dog"
    assert fill("banana {}", "apple") == "banana apple"
    both = fill_words("in {word} style on a {word} background", ["apple"], rng())
    assert both == "in apple style on an apple background"


def test_templates_of_ones_own() -> None:
    pairs = Concept("dog", "cat", templates=["see {} run"]).prompt_pairs(2, [], rng())
    assert pairs == [("see dog run", "see cat run")] * 2


def test_without_a_vocabulary_templates_with_words_are_skipped() -> None:
    assert all("{" not in t for t, _ in Concept("dog", "cat").prompt_pairs(20, [], rng()))
    with pytest.raises(ValueError, match="word"):
        Concept("dog", "cat", templates=["{} {word}"]).prompt_pairs(2, [], rng())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": ""}, "target must name"),
        ({"target": "  "}, "target must name"),
        ({"target": None}, "target must name"),
        ({"target": "dog", "anchor": "Dog "}, "target and anchor are both"),
        ({"target": "dog", "anchor": 5}, "anchor must be a string or None, got 5"),
        ({"target": "dog", "anchor": "cat", "kind": "person"}, "unknown kind 'person'"),
        ({"target": "dog", "templates": ["a dog"]}, "has no {}"),
    ],
)
def test_bad_concepts(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Concept(**arguments)


def test_retain_prompts_never_ask_for_the_target() -> None:
    prompts = retain_prompts(Concept("dog", "cat"), None, 400, WORDS, rng())
    assert len(prompts) == 400
    assert not any("dog" in p.split() for p in prompts)
    assert any("apple" in p.split() for p in prompts)


def test_named_retain_prompts_are_used_as_they_are_and_in_templates() -> None:
    prompts = retain_prompts(Concept("dog", "cat"), ["tree", "house"], 60, WORDS, rng())
    assert "tree" in prompts and "a photo of a house" in prompts
    assert all("tree" in p or "house" in p for p in prompts)


def test_longer_prompts_are_retained_as_they_are() -> None:
    named = ["in noto style", "a fox in the snow"]
    assert set(retain_prompts(Concept("dog", "cat"), named, 60, WORDS, rng())) == set(named)


def test_templates_may_be_any_iterable() -> None:
    concept = Concept("dog", "cat", templates=(t for t in ["a {}", "the {}"]))
    assert concept.templates == ("a {}", "the {}")


def test_bad_retain() -> None:
    for name in ("Dog", "a dog", "a red dog on grass"):
        with pytest.raises(ValueError, match="it asks for the target"):
            retain_prompts(Concept("dog", "cat"), ["tree", name], 4, WORDS, rng())
    with pytest.raises(ValueError, match="list of prompts"):
        retain_prompts(Concept("dog", "cat"), "tree", 4, WORDS, rng())


def test_nothing_to_retain_by_falls_back_to_the_empty_prompt() -> None:
    assert retain_prompts(Concept("dog", "cat"), None, 3, [], rng()) == [""] * 3


def test_vocabulary_is_whole_words(pipe) -> None:
    from conftest import WORDS as KNOWN

    assert vocabulary(pipe) == sorted(KNOWN)
    assert vocabulary(object()) == []


def test_without_compares_words_not_letters() -> None:
    assert without(["car", "carrot"], ["Car"]) == ["carrot"]
