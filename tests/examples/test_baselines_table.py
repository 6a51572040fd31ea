from __future__ import annotations

import json

import pytest
import typer

from examples.baselines.printing import ahead, by_target, printed
from examples.baselines.table import BASELINES, METHODS, Table, gathered, parsed, usual


def test_the_table_sorts_by_harmonic_mean() -> None:
    rows = [
        {
            "method": method,
            "target": target,
            "seed": seed,
            "harmonic": h,
            "ua": h,
            "ira": 1.0,
            "cra": 1.0,
            "fid": 2.0,
            "seconds": 3.0,
            "bytes": 2048,
            "pictures": 156,
        }
        for method, h in (("ours, kl", 0.5), ("UCE", 0.9))
        for target in ("dog", "blob")
        for seed in (0, 1)
    ]
    lines = printed(rows).splitlines()
    assert lines[2].startswith("| UCE | 4 | 0.900 ± 0.000")
    assert lines[3].startswith("| ours, kl | 4 | 0.500") and lines[3].endswith("| 624 | 3.0 | 2 |")
    assert "| UCE | 0.900 | 0.900 |" in by_target(rows)


def test_what_is_ahead_is_paired_by_target() -> None:
    found = {
        "ours, kl": {"dog": (0.9, 0.8), "blob": (0.5,), "fluent": (1.0,)},
        "UCE": {"dog": (0.75,), "blob": (0.6,)},
    }
    rows = [
        {"method": method, "target": target, "harmonic": value}
        for method, targets in found.items()
        for target, values in targets.items()
        for value in values
    ]
    lines = ahead(rows, "ours, ").splitlines()
    assert lines[0] == "| harmonic mean less that of | UCE |"
    assert lines[2].startswith("| ours, kl | 0.000 ± ") and lines[2].endswith(", 1 of 2 |")
    assert len(lines) == 3


def test_the_variational_ones_are_measured_when_asked() -> None:
    main, whole = usual(False, quick=False), usual(True, quick=False)
    assert set(BASELINES) < set(main) < set(whole) == set(METHODS)
    assert not any("variational" in method for method in main)
    assert set(whole) - set(main) == {method for method in METHODS if "variational" in method}
    assert set(usual(True, quick=True)) < set(main)


def test_lanes_know_each_others_rows_and_write_to_their_own_file(tmp_path) -> None:
    output = tmp_path / "table.jsonl"
    row = {"target": "dog", "method": "UCE", "seed": 0, "quick": False}
    gathered(output, (0, 1)).add(row)
    for lane in (0, 1):
        results = gathered(output, (lane, 2))
        assert results.find(**row) is not None
        results.add({**row, "seed": 1 + lane})
        assert results.path == tmp_path / f"table.lane{lane}of2.jsonl"
        assert json.loads(results.path.read_text())["seed"] == 1 + lane
    again = gathered(output, (0, 3))  # split anew, and a row that two lanes have measured
    again.add({**row, "seed": 2})
    assert sorted(r["seed"] for r in gathered(output, (0, 1)).rows) == [0, 1, 2]
    assert len(output.read_text().splitlines()) == 1


@pytest.mark.parametrize("lane", ["2/2", "0", "a/b", "-1/2", "0/0"])
def test_a_lane_that_is_none_is_refused(lane: str) -> None:
    with pytest.raises(typer.BadParameter, match="not i/n"):
        parsed(lane)


@pytest.mark.parametrize("target", ["dog", "blob"])
def test_fewer_pictures_still_have_every_style_and_many_concepts(target: str, tmp_path) -> None:
    full, quick = (Table(gathered(tmp_path / "t.jsonl", (0, 1)), q) for q in (False, True))
    own, count, rest = full.asked(target)
    assert len(own) * count + len(rest) == (156 if target == "dog" else 160)
    few, less, others = quick.asked(target)
    assert all(target in cell for cell in few) and not any(target in cell for cell in others)
    assert len(few) * less + len(others) < 45
    assert {style for _, style in others} == {style for _, style in rest}
    assert len({concept for concept, _ in others}) > 15
