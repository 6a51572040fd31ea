from __future__ import annotations

import numpy as np
import pytest

from diffusers_fdu.evaluation.images import Request
from diffusers_fdu.evaluation.metrics.accuracy import Judged, accuracies, harmonic

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
    found = accuracies(Judged(ASKED, SEEN, "object"))
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
    found = accuracies(Judged(own, seen, "style"))
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
    found = accuracies(Judged(own, seen, "object"))
    assert found["ua"].value == 0.5
    assert "cra" not in found


def test_before_is_what_was_seen_without_the_adapter() -> None:
    before = [dict(request.expected) for request in ASKED]
    found = accuracies(Judged(ASKED, SEEN, "object"), Judged(ASKED, before, "object"))
    assert (found["ua"].before, found["ira"].before, found["cra"].before) == (0, 1, 1)
    assert found["mace"].before == 0


def test_harmonic_mean_of_arrays() -> None:
    found = harmonic(np.array([1.0, 0.5]), np.array([1.0, 0.0]))
    assert found.tolist() == [1.0, 0.0]


def test_pictures_without_the_target_are_refused() -> None:
    with pytest.raises(ValueError, match="no picture"):
        Judged(ASKED[4:], SEEN[4:], "object")
