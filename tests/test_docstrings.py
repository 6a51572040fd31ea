"""Every public function and class has an example in its docstring, and the examples run.

An example finds `pipe`, the embedded pipeline, and every public name; and in its working directory
two saved adapters, `forget-dog` and `forget-pizza`.
"""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path

import pytest

import diffusers_fdu
from diffusers_fdu import FDUnlearner, emoji

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EVALUATION = {
    "protocol": "quick",
    "images": 24,
    "seeds": [0, 1],
    "judge": "the embedded judge",
    "metrics": {"ua": {"value": 1.0, "low": 0.8, "high": 1.0, "before": 0.0, "count": 16}},
}
MODULES = (diffusers_fdu, emoji)
PUBLIC = {
    name: value
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name)) or inspect.isclass(value)
}
METHODS = [name for name, method in vars(FDUnlearner).items() if inspect.isfunction(method)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers_fdu.adapters.evaluation_file import write_evaluation

    folder = tmp_path_factory.mktemp("adapters")
    options = {"rank": 4, "steps": 2, "trajectories": 2, "progress": False}
    for target, anchor in (("dog", "cat"), ("pizza", "hamburger")):
        worker = FDUnlearner(emoji.load_emoji_pipeline(), **options)
        worker.unlearn(target, anchor)
        worker.save(folder / f"forget-{target}")
    write_evaluation(EVALUATION, folder / "forget-dog")
    return folder


def examples(value: object, name: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(value, name)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_each_has_an_example_that_runs(name, adapters, tmp_path, monkeypatch) -> None:
    tests = examples(PUBLIC[name], name)
    assert tests, f"the docstring of {name} has no example"
    for number, test in enumerate(tests):
        folder = tmp_path / str(number)
        shutil.copytree(adapters, folder)
        monkeypatch.chdir(folder)
        test.globs = {**PUBLIC, "pipe": emoji.load_emoji_pipeline()}
        report: list[str] = []
        doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append)
        assert not report, "".join(report)


@pytest.mark.parametrize("name", [n for n in METHODS if not n.startswith("_")])
def test_each_method_of_the_front_door_has_an_example(name) -> None:
    assert ">>>" in (getattr(FDUnlearner, name).__doc__ or "")
