from __future__ import annotations

import random

import pytest

from diffusers_fdu import Concept
from diffusers_fdu.data.concepts import TEMPLATES, NegativeGuidance, Pair, make_concepts
from diffusers_fdu.data.plan import retain_prompts

WORDS = ["cat", "dog", "apple", "blue"]


def rng() -> random.Random:
    return random.Random(0)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_pairs_differ_in_the_concept_alone(kind) -> None:
    pairs = Concept("dog", "cat", kind=kind).prompt_pairs(40, ["blue", "tree"], rng())
    assert len(pairs) == 40
    for target, anchor, concept, guidance in pairs:
        assert target.replace("dog", "cat") == anchor and "{" not in target
        assert (concept, guidance) == (0, None)


def test_no_anchor_is_the_empty_prompt() -> None:
    assert {p.anchor for p in Concept("dog").prompt_pairs(12, WORDS, rng())} == {""}


def test_fillers_are_never_the_concepts() -> None:
    prompts = Concept("dog", "cat").prompt_pairs(300, WORDS, rng())
    targets = [pair.target.split() for pair in prompts]
    assert all(t.count("dog") == 1 and "cat" not in t for t in targets)
    assert any("apple" in t for t in targets)


def test_prompts_of_ones_own() -> None:
    pairs = Concept("dog", "cat", prompts=["see {} run"]).prompt_pairs(2, [], rng())
    assert pairs == [Pair("see dog run", "see cat run")] * 2


def test_prompts_from_a_file(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a {} on {word}\n\n  the {}\n", encoding="utf-8")
    for given in (path, str(path)):
        assert Concept("dog", "cat", prompts=given).prompts == ("a {} on {word}", "the {}")
    with pytest.raises(ValueError, match="cannot read prompts from .*none.txt"):
        Concept("dog", "cat", prompts=tmp_path / "none.txt")
    path.write_text("\n")
    with pytest.raises(ValueError, match="prompts is empty"):
        Concept("dog", "cat", prompts=path)


def test_free_prompts_are_used_as_they_are() -> None:
    pairs = Concept("a dog in the rain", "rain", kind="prompt").prompt_pairs(2, WORDS, rng())
    assert pairs == [Pair("a dog in the rain", "rain")] * 2


def test_every_name_of_the_target_meets_every_prompt() -> None:
    concept = Concept("Snoopy", "dog", prompts=["a {}", "my {}"], aliases=["the beagle"])
    pairs = concept.prompt_pairs(4, [], rng())
    assert [p.target for p in pairs] == ["a Snoopy", "a the beagle", "my Snoopy", "my the beagle"]
    assert [p.anchor for p in pairs] == ["a dog", "a dog", "my dog", "my dog"]


def test_words_of_an_alias_are_no_fillers() -> None:
    concept = Concept("dog", "cat", aliases=["apple"])
    prompts = concept.prompt_pairs(100, WORDS, rng())
    assert all(("apple" in p.target) + ("dog" in p.target) == 1 for p in prompts)
    assert not any("apple" in p for p in retain_prompts([concept], None, 100, WORDS, rng()))


def test_negative_guidance_draws_the_target() -> None:
    concept = Concept("dog", NegativeGuidance(2), prompts=["a {}"])
    (pair,) = concept.prompt_pairs(1, [], rng(), index=3)
    assert pair == Pair("a dog", "", 3, 2) and pair.drawn == "a dog"
    assert Pair("a dog", "a cat").drawn == "a cat"
    for scale in (-1, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match="scale must be a number"):
            NegativeGuidance(scale)


def test_several_concepts() -> None:
    own = Concept("blob", "noto", kind="style")
    found = make_concepts(["dog", own], ["cat", None])
    assert found == [Concept("dog", "cat"), own]
    assert [c.anchor for c in make_concepts(["dog", "cow"], "cat")] == ["cat", "cat"]
    assert make_concepts("dog", "cat") == [Concept("dog", "cat")]
    assert make_concepts(["dog", own], "cat") == [Concept("dog", "cat"), own]
    assert make_concepts(own) == [own]


@pytest.mark.parametrize(
    ("target", "anchor", "message"),
    [
        ([], None, "no target"),
        (["dog", "cow"], ["cat"], "2 targets and 1 anchors"),
        (["dog", "Dog"], "cat", "'dog' is to be forgotten twice"),
        ([Concept("dog", "cat", aliases=["cow"]), "cow"], None, "'cow' is to be forgotten twice"),
        (["dog", "cat"], ["cat", "fox"], "'cat' is to be forgotten and is the anchor of 'dog'"),
        (Concept("dog", "cat"), "cow", "the Concept has its own anchor"),
    ],
)
def test_concepts_that_do_not_go_together(target, anchor, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_concepts(target, anchor)


def test_without_a_vocabulary_templates_with_words_are_skipped() -> None:
    pairs = Concept("dog", "cat").prompt_pairs(20, [], rng())
    assert all("{" not in pair.target for pair in pairs)
    with pytest.raises(ValueError, match="word"):
        Concept("dog", "cat", prompts=["{} {word}"]).prompt_pairs(2, [], rng())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": ""}, "target must name"),
        ({"target": "  "}, "target must name"),
        ({"target": None}, "target must name"),
        ({"target": "dog", "anchor": "Dog "}, "target and anchor are both"),
        ({"target": "dog", "anchor": 5}, "anchor must be a string, a NegativeGuidance"),
        ({"target": "dog", "anchor": "cat", "kind": "person"}, "unknown kind 'person'"),
        ({"target": "dog", "prompts": ["a dog"]}, "has no {}"),
        ({"target": "dog", "prompts": []}, "prompts is empty"),
        ({"target": "dog", "prompts": ["a {} in {place}"]}, "has {place}: only {} for the"),
        ({"target": "dog", "prompts": ["a {} in {word"]}, "has {: only"),
        ({"target": "dog", "aliases": "puppy"}, "aliases must be a list"),
        ({"target": "dog", "aliases": [""]}, "target must name a concept, got ''"),
        ({"target": "dog", "anchor": "cat", "aliases": ["Cat"]}, "target and anchor are both"),
    ],
)
def test_bad_concepts(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Concept(**arguments)


def test_prompts_may_be_any_iterable() -> None:
    concept = Concept("dog", "cat", prompts=(t for t in ["a {}", "the {}"]))
    assert concept.prompts == ("a {}", "the {}")
