from __future__ import annotations

import json

import pytest

from diffusers_fdu import NegativeGuidance
from diffusers_fdu.cli.concept_list import read_concepts
from diffusers_fdu.utils.io import as_json

LIST = """
- {target: Snoopy, anchor: dog, aliases: [Snoopy the beagle]}
- {target: Van Gogh, anchor: painting, kind: style}
- target: Garfield
  negative_guidance: 1.5
  name: no_garfield
"""


def listed(folder, text=LIST):
    path = folder / "concepts.yaml"
    path.write_text(text)
    return read_concepts(path)


def test_a_list_of_concepts(tmp_path) -> None:
    snoopy, gogh, garfield = listed(tmp_path)
    assert (snoopy.name, gogh.name, garfield.name) == ("snoopy", "van-gogh", "no_garfield")
    assert snoopy.concept.anchor == "dog"
    assert list(snoopy.concept.names) == ["Snoopy", "Snoopy the beagle"]
    assert gogh.concept.kind == "style"
    assert garfield.concept.anchor == NegativeGuidance(1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no list of concepts"),
        ("target: dog", "is no list of concepts"),
        ("- {target: [1}", "cannot read .*concepts.yaml"),
        ("- {anchor: dog}", "concept 1: no target in"),
        ("- {target: dog, colour: red}", "concept 1: unknown option 'colour'"),
        (
            "- {target: dog, anchor: a, negative_guidance: 1}",
            "concept 1: an anchor and negative_guidance",
        ),
        ("- {target: dog, name: a/b}", "name 'a/b' must be"),
        ("- {target: dog}\n- {target: Dog!}", "two concepts are named 'dog'"),
        ("- {target: dog, kind: colour}", "concept 1: .*colour"),
        ("- {target: dog}\n- {target: cat, aliases: 5}", "concept 2: "),
        ("- {target: dog, kind: [a]}", "concept 1: "),
    ],
)
def test_lists_that_are_refused(tmp_path, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, text)


def test_a_concept_is_done_once_its_adapter_is_whole(tmp_path) -> None:
    snoopy, gogh, _ = listed(tmp_path)
    (tmp_path / "snoopy").mkdir()
    assert not snoopy.is_done(tmp_path, "kl")
    facts = {"concepts": as_json([vars(snoopy.concept)]), "f": "kl"}
    (tmp_path / "snoopy" / "recipe.json").write_text(json.dumps(facts))
    assert snoopy.is_done(tmp_path, "kl") and not gogh.is_done(tmp_path, "kl")
    with pytest.raises(ValueError, match="an adapter with f='kl', and 'tv' is wanted"):
        snoopy.is_done(tmp_path, "tv")
    other, *_ = listed(tmp_path, LIST.replace("anchor: dog", "anchor: cat"))
    with pytest.raises(ValueError, match="an adapter with concepts="):
        other.is_done(tmp_path, "kl")
