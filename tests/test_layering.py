"""Imports point down: a folder imports folders of lower layers, and itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusers_fdu"
LAYERS = (
    {"utils", "config", "emoji"},
    {"settings"},
    {"divergences", "pipelines"},
    {"data", "adapters"},
    {"training", "hub"},
    {"unlearner"},
    {"evaluation", "retraining"},
    {"app"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def folder(path: Path) -> str:
    """The folder or the module at the top level that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Folders that a file imports, in its functions too; "__init__" for the package itself."""
    package = ("diffusers_fdu", *path.relative_to(PACKAGE).parts[:-1])
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            names |= {(*filter(None, module), alias.name) for alias in node.names}
    own = {name[1] if len(name) > 1 else "" for name in names if name[0] == "diffusers_fdu"}
    return {name if name in LEVELS else "__init__" for name in own}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = folder(path)
    for other in imported(path) - {own}:
        assert LEVELS[other] < LEVELS[own], f"{own} may not import {other}"


def test_there_are_at_most_six_modules_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_module_is_long() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > 300}
