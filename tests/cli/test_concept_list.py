from __future__ import annotations

import json

import pytest

from diffusers_fdu import NegativeGuidance
from diffusers_fdu.cli.concept_list import read_concepts, unfinished
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


def test_processes_share_the_list_and_leave_out_what_is_done(tmp_path) -> None:
    found = listed(tmp_path)
    shares = [unfinished(found, tmp_path, "kl", rank, 2) for rank in range(2)]
    assert [[job.name for job in share] for share in shares] == [
        ["snoopy", "no_garfield"],
        ["van-gogh"],
    ]
    (tmp_path / "snoopy").mkdir()
    assert len(unfinished(found, tmp_path, "kl", 0, 2)) == 2  # begun is not done
    facts = {"concepts": as_json([vars(found[0].concept)]), "f": "kl"}
    (tmp_path / "snoopy" / "recipe.json").write_text(json.dumps(facts))
    assert [job.name for job in unfinished(found, tmp_path, "kl", 0, 2)] == ["no_garfield"]
    with pytest.raises(ValueError, match="an adapter with f='kl', and 'tv' is wanted"):
        unfinished(found, tmp_path, "tv", 0, 2)
    other = listed(tmp_path, LIST.replace("anchor: dog", "anchor: cat"))
    with pytest.raises(ValueError, match="an adapter with concepts="):
        unfinished(other, tmp_path, "kl", 0, 2)
