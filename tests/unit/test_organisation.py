"""Organisation of the tests: each in the folder of its kind, and what they share in helpers."""

import ast
from pathlib import Path

import pytest

from paths import ROOT

MODULES = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_is_in_a_folder_of_its_kind_and_imports_no_other(path: Path, request: pytest.FixtureRequest) -> None:
    kind = path.parent.name
    assert path.parent.parent == ROOT / "tests"
    assert f"{kind}: " in "\n".join(request.config.getini("markers"))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name.startswith("test_")]


def test_is_marked_by_its_folder(request: pytest.FixtureRequest) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == ["unit"]
