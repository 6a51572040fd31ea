"""No function takes many things: what travels together is a dataclass."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusers_fdu"
MOST = 8
EXCEPTIONS = {
    "divergences/triton/kernels.py",  # what a kernel is given are its pointers and strides
    "divergences/triton/launch.py",  # its operators pass a kernel's arguments on
}
FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if str(path.relative_to(PACKAGE)) not in EXCEPTIONS
]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    names = [one.arg for one in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_takes_many_things(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert len(parameters(node)) <= MOST, node.name


def test_public_names_are_those_that_type_checkers_see() -> None:
    """The package imports a name when it is used, from where type checkers are told it is."""
    import diffusers_fdu

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {
        alias.name: f"diffusers_fdu.{node.module}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(told) == diffusers_fdu.__all__
    assert {n: f"diffusers_fdu.{m}" for n, m in diffusers_fdu._MODULES.items()} == told
    assert all(getattr(diffusers_fdu, name) is not None for name in told)
