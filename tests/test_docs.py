"""What the documentation names is there: imports, files, and the docstrings' modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusers_fdu"
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
IMPORT = re.compile(r"from diffusers_fdu[\w.]* import (?:\([^)]*\)|[\w, ]+)")
MENTION = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)\b")
SUFFIXES = ("json", "jsonl", "html", "md")
MODULES = {path.stem for path in PACKAGE.rglob("*.py")}


def names_in(path: Path) -> set[str]:
    """Names that a module defines or imports at any level, attributes included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_of_a_page_work(page: Path) -> None:
    for line in IMPORT.findall(page.read_text()):
        exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    roots = (ROOT, PACKAGE, ROOT / "examples", ROOT / "tests")
    for name in MENTION.findall(page.read_text()):
        assert any((root / name).exists() for root in roots), f"{page.name} names {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_functions_that_a_docstring_names_by_module_are_there(path: Path) -> None:
    known = names_in(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for module, name in re.findall(r"`([a-z_]+)\.(\w+)`", ast.get_docstring(node) or ""):
            if module in known or module not in MODULES or name in SUFFIXES:
                continue
            files = PACKAGE.rglob(f"{module}.py")
            assert any(name in names_in(file) for file in files), f"`{module}.{name}`"
