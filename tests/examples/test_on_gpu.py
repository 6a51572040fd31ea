"""The driver of what is measured on a GPU, with parts of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from examples.benchmarks import all as everything
from examples.benchmarks.lines import Results, Skipped, newest, read
from examples.on_gpu import gpu_tests, plan
from examples.on_gpu.driver import ROOT, Driver
from examples.on_gpu.plan import PARTS, Part, chosen
from examples.on_gpu.profiling import covered
from examples.on_gpu.summary import summary

WRITES = """
import sys
from pathlib import Path
from examples.benchmarks.lines import Results
path = Path(sys.argv[sys.argv.index("--results") + 1])
results = Results(path, "cpu", part=int(sys.argv[sys.argv.index("--part") + 1]))
results.add("sample", check="first", seconds=1.5)
"""
HANGS = f"""{WRITES}
import subprocess, sys, time
print("it waits", flush=True)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


def part(number: int, code: str, limit: float = 30, expected: float = 0) -> Part:
    return Part(number, f"part {number}", limit, expected, ("-c", code))


def driver(tmp_path, **options) -> Driver:
    return Driver(tmp_path, "cpu", **options)


def test_a_part_that_hangs_is_stopped_and_the_others_go_on(tmp_path) -> None:
    worker, begun = driver(tmp_path), time.monotonic()
    worker.run([part(1, HANGS, limit=2), part(2, WRITES)])
    assert time.monotonic() - begun < 20
    lines = read(worker.results)
    assert [(line["part"], line["benchmark"]) for line in lines] == [
        (1, "sample"),
        (1, "part"),
        (2, "sample"),
    ]
    assert lines[1]["error"] == "stopped after 2 s: it waits"
    assert worker.failed and worker.ended["part 2"][0] == "ok"


def test_what_a_stopped_part_started_is_stopped_too(tmp_path) -> None:
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}])"
    driver(tmp_path).run([part(1, f"{code}; time.sleep(60)", limit=1)])
    time.sleep(3.5)
    assert not mark.exists()


def test_a_crash_leaves_a_line_with_its_reason(tmp_path) -> None:
    worker = driver(tmp_path)
    worker.run([part(1, "raise ValueError('no such card')"), part(2, "pass"), part(3, WRITES)])
    errors = [line["error"] for line in read(worker.results) if "error" in line]
    assert errors == [
        "ended with 1: ValueError: no such card",
        "it wrote no results: it logged nothing",
    ]
    assert [how for how, _ in worker.ended.values()] == ["failed", "failed", "ok"]
    log = worker.log.read_text()
    assert "=== part 1, part 1" in log and "ValueError: no such card" in log


def test_a_part_s_own_error_is_not_written_twice(tmp_path) -> None:
    own = "results.add('sample', check='second', error='too small')\nsys.exit(1)"
    worker = driver(tmp_path)
    worker.run([part(1, f"{WRITES}\n{own}")])
    assert [line.get("error") for line in read(worker.results)] == [None, "too small"]
    assert worker.failed


def test_no_part_begins_without_the_time_that_it_needs(tmp_path) -> None:
    worker = driver(tmp_path, deadline=20)
    worker.run([part(1, WRITES, expected=30), part(2, WRITES)])
    skipped, done = read(worker.results)
    assert skipped["skipped"] == "20 s were left, it needs 30" and done["part"] == 2
    assert worker.ended["part 1"] == ("skipped", 0.0) and not worker.failed


def test_the_deadline_cuts_a_part_s_limit(tmp_path) -> None:
    worker = driver(tmp_path, deadline=2)
    worker.run([part(1, "import time; time.sleep(60)", limit=30)])
    (line,) = read(worker.results)
    assert line["error"] == "stopped after 2 s: it logged nothing"


def test_a_line_says_where_and_when(tmp_path) -> None:
    worker = driver(tmp_path, tiny=True)
    worker.run([part(7, WRITES)])
    (line,) = read(worker.results)
    assert line["device"] == "cpu" and "CPU cores" in line["name"] and line["versions"]["torch"]
    assert line["seconds"] == 1.5 and line["part"] == 7 and line["date"].count("-") == 2


def test_parts_are_chosen_by_number() -> None:
    assert [p.number for p in chosen("6, 2")] == [2, 6] == [p.number for p in chosen("2 6")]
    assert chosen("") == list(PARTS)
    with pytest.raises(ValueError, match="no part '12': choose from 0, 1, 2"):
        chosen("2 12")


def test_the_program_takes_its_parts_from_the_environment(tmp_path) -> None:
    """Without a GPU, and with only the standard library."""
    command = [sys.executable, "-S", "-m", "examples.on_gpu", "--tiny", "--device", "cpu"]
    environment = {"PARTS": "3 8", "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        [*command, "--deadline", "20", "--wheels", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "steps      skipped" in done.stdout and "tests      skipped" in done.stdout
    lines = read(tmp_path / "out" / "results.jsonl")
    assert [(line["part"], line["tiny"]) for line in lines] == [(3, True), (8, True)]
    assert "s were left, it needs 60" in done.stdout


def test_every_part_calls_a_function_that_is_there() -> None:
    import importlib

    for one in PARTS:
        module, _, name = one.command[-1].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    assert sum(one.expected for one in PARTS) < 480
    assert plan.PARTS[0].number == 0


def test_an_attempt_that_raises_leaves_a_line_and_what_follows_goes_on(tmp_path) -> None:
    results = Results(tmp_path / "r.jsonl", "cpu")
    with results.attempt("a", check="one"):
        raise Skipped("no GPU")
    assert not results.failed
    with results.attempt("a", check="two"):
        raise RuntimeError("out of memory")
    results.add("a", check="two", seconds=2.0)
    lines = read(tmp_path / "r.jsonl")
    assert lines[0]["skipped"] == "no GPU" and lines[1]["error"] == "RuntimeError: out of memory"
    assert results.failed
    assert [line.get("seconds") for line in newest(lines)][1] == 2.0 and len(newest(lines)) == 2


def test_a_failure_is_forgotten_once_it_was_measured() -> None:
    failed = {"benchmark": "unlearn", "model": "sdxl", "settings": "12 GiB", "error": "no memory"}
    other = {**failed, "model": "sd1"}
    done = {"benchmark": "unlearn", "model": "sdxl", "settings": "12 GiB", "phase": "training"}
    assert newest([failed, other, done]) == [other, done]
    assert newest([done, failed]) == [done, failed]


def test_tests_that_fail_leave_a_line_each_and_a_count(tmp_path) -> None:
    file, path = tmp_path / "test_some.py", tmp_path / "r.jsonl"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_c(): pass\n"
    )
    job = json.dumps([str(path), "cpu", {"part": 8}])
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "examples.on_gpu.gpu_tests"]
    outside = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(
        [*command, "-p", "no:cacheprovider", str(file)],
        cwd=ROOT,
        env={**outside, gpu_tests.VARIABLE: job},
        capture_output=True,
    )
    failed, count = read(path)
    assert failed["check"].endswith("test_b") and "assert 1 == 2" in failed["error"]
    assert [count[name] for name in ("passed", "failed", "left_out")] == [1, 1, 1]
    assert count["check"] == "all" and count["part"] == failed["part"] == 8


def test_a_line_that_was_cut_off_is_left_out(tmp_path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"benchmark": "a"}\n{"bench')
    assert read(file) == [{"benchmark": "a"}]


def line(benchmark: str, **row) -> dict:
    about = {"device": "cuda", "name": "a card", "driver": "1.2", "versions": {"torch": "2"}}
    return {**about, "date": "2026-11-28", "benchmark": benchmark, "seconds": 1.0, **row}


LINES = [
    line("unlearn", model="sd1", settings="defaults", phase="recording", bytes=2 << 30),
    line(
        "unlearn",
        model="sd1",
        settings="defaults",
        phase="training",
        seconds=30.0,
        bytes=20 << 30,
        estimate_bytes=25 << 30,
    ),
    line("train_step", model="sd1", variant="ours", batch=2, seconds=9.0, bytes=1 << 30),
    line("train_step", model="sd1", variant="ours", batch=2, seconds=0.5, bytes=1 << 30),
    line("works", check="dog to cat, float16", ua=0.975, ira=0.992, cra=0.9),
    line("gpu_tests", check="all", passed=300, failed=0, left_out=2),
    line(
        "profile", model="sd1", batch=2, variant="contiguous", busy=0.5, gpu_top=[["mm", 5e4, 3]]
    ),
    line("part", check="flux", error="stopped"),
]


def test_results_of_a_gpu_are_put_into_the_page(tmp_path) -> None:
    before = everything.PAGE.read_text()
    page = everything.render(LINES, before)
    assert "a card; driver 1.2, torch 2; 2026-11-28." in page
    assert "| sd1 | defaults |  | 1.0 |  |  | 30.0 |  | 20.00 | 0.00 |" in page
    assert "| sd1, defaults | training | 25.00 | 20.00 | 1.25 |  |" in page
    assert "| sd1 | 2 | ours | 0.500 |" in page and "9.000" not in page
    assert "| dog to cat, float16 |  |  |  | 0.975 | 0.992 | 0.900 |" in page
    assert "| all | 300 | 0 | 2 | 1 |" in page
    assert "| `mm` | 2 | 50.00 | 5% | 3 |" in page
    assert everything.render(LINES, page) == page
    found = {"train_step", "unlearn", "memory", "works", "gpu_tests", "profile"}
    for name in (*found, "loss_kernel", "time_to_erase"):
        begin, end = (f"<!-- {word} {name} cuda -->" for word in ("begin", "end"))
        old, new = (text.split(begin)[1].split(end)[0] for text in (before, page))
        assert (old != new) == (name in found), name


def test_results_of_a_try_are_not_put_into_the_page() -> None:
    with pytest.raises(ValueError, match="results of --tiny"):
        everything.render([line("works", check="a", tiny=True)], everything.PAGE.read_text())


def test_the_table_at_the_end_names_what_failed(tmp_path) -> None:
    worker = driver(tmp_path)
    worker.ended = {"flux": ("failed", 70.0)}
    worker.results.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    text = summary(worker)
    assert "flux       failed      70 s" in text and "error: stopped" in text
    assert "estimated  25.00" in text and "ua 0.975" in text


def test_overlapping_kernels_are_counted_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4
    assert covered([]) == 0
