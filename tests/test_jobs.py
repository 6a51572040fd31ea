from __future__ import annotations

import pytest

from diffusers_fdu import NegativeGuidance
from diffusers_fdu.jobs import DONE, own_jobs, read_jobs

LIST = """
- {target: Snoopy, anchor: dog, aliases: [Snoopy the beagle]}
- {target: Van Gogh, anchor: painting, kind: style}
- target: Garfield
  negative_guidance: 1.5
  name: no_garfield
"""


def jobs(folder, text=LIST):
    path = folder / "concepts.yaml"
    path.write_text(text)
    return read_jobs(path)


def test_a_list_of_concepts(tmp_path) -> None:
    snoopy, gogh, garfield = jobs(tmp_path)
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
        ("- {target: [1}", "cannot read concepts"),
        ("- {anchor: dog}", "concept 1 has no target"),
        ("- {target: dog, colour: red}", "concept 1: unknown 'colour'"),
        ("- {target: dog, anchor: a, negative_guidance: 1}", "both an anchor and"),
        ("- {target: dog, name: a/b}", "name 'a/b' must be"),
        ("- {target: dog}\n- {target: Dog!}", "two concepts are named 'dog'"),
        ("- {target: dog, kind: colour}", "colour"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        jobs(tmp_path, text)


def test_processes_share_the_list_and_leave_out_what_is_done(tmp_path) -> None:
    found = jobs(tmp_path)
    shares = [own_jobs(found, tmp_path, rank, 2) for rank in range(2)]
    assert [[job.name for job in share] for share in shares] == [
        ["snoopy", "no_garfield"],
        ["van-gogh"],
    ]
    (tmp_path / "snoopy").mkdir()
    assert len(own_jobs(found, tmp_path, 0, 2)) == 2  # begun is not done
    (tmp_path / "snoopy" / DONE).touch()
    assert [job.name for job in own_jobs(found, tmp_path, 0, 2)] == ["no_garfield"]
