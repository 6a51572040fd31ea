from __future__ import annotations

import random

import pytest

from diffusers_fdu import Concept
from diffusers_fdu.data.plan import retain_prompts

WORDS = ["cat", "dog", "apple", "blue"]


def rng() -> random.Random:
    return random.Random(0)


def test_retain_prompts_never_ask_for_the_target() -> None:
    prompts = retain_prompts([Concept("dog", "cat")], None, 400, WORDS, rng())
    assert len(prompts) == 400
    assert not any("dog" in p.split() for p in prompts)
    assert any("apple" in p.split() for p in prompts)


def test_named_retain_prompts_are_used_as_they_are_and_in_templates() -> None:
    prompts = retain_prompts([Concept("dog", "cat")], ["tree", "house"], 60, WORDS, rng())
    assert "tree" in prompts and "a photo of a house" in prompts
    assert all("tree" in p or "house" in p for p in prompts)


def test_longer_prompts_are_retained_as_they_are() -> None:
    named = ["in noto style", "a fox in the snow"]
    assert set(retain_prompts([Concept("dog", "cat")], named, 60, WORDS, rng())) == set(named)


def test_bad_retain() -> None:
    for name in ("Dog", "a dog", "a red dog on grass", "a dog, sleeping", "dog.", "two dogs"):
        with pytest.raises(ValueError, match="it asks for the target"):
            retain_prompts([Concept("dog", "cat")], ["tree", name], 4, WORDS, rng())
    with pytest.raises(ValueError, match="list of prompts"):
        retain_prompts([Concept("dog", "cat")], "tree", 4, WORDS, rng())


def test_nothing_to_retain_by_falls_back_to_the_empty_prompt() -> None:
    assert retain_prompts([Concept("dog", "cat")], None, 3, [], rng()) == [""] * 3


def test_prompts_of_several_concepts() -> None:
    """Templates of both kinds in turn, and no word of either target."""
    several = [Concept("dog", "cat"), Concept("blue", "red", kind="style")]
    prompts = retain_prompts(several, None, 100, WORDS, rng())
    assert not any({"dog", "blue"} & set(p.split()) for p in prompts)
    assert any("style" in p for p in prompts) and "a photo of an apple" in prompts
    named = retain_prompts(several, ["tree", "house"], 100, WORDS, rng())
    assert any("in tree style" in p for p in named) and "a photo of a tree" in named
    with pytest.raises(ValueError, match="it asks for the target 'blue'"):
        retain_prompts(several, ["blue sky"], 4, WORDS, rng())
