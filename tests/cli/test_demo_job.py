from __future__ import annotations

import pytest

from diffusers_fdu.adapters.evaluation_file import write_evaluation
from diffusers_fdu.cli.demo_job import demo_evaluation
from diffusers_fdu.evaluation.emoji import Scores


@pytest.mark.parametrize(("target", "drawn"), [("dog", 40), ("blob", 64)])
def test_the_demo_says_what_it_measured(tmp_path, target, drawn) -> None:
    before, after = Scores(0.05, 0.996, 0.9, 288), Scores(0.975, 0.9879, 1.0, 288)
    found = demo_evaluation(target, before, after)
    write_evaluation(found, tmp_path)
    ua, cra = found["metrics"]["ua"], found["metrics"]["cra"]
    assert ua["low"] < ua["value"] < ua["high"] and ua["before"] == 0.05
    assert cra["low"] < cra["value"] == cra["high"] == 1
    assert f"{drawn} pictures of the target" in found["protocol"]
    own = "style" if target == "blob" else "concept"
    assert f"the right {own}; CRA" in found["protocol"]
    assert len(found["seeds"]) == (10 if target == "dog" else 2)
