"""Docstrings stand alone: none begins as a fragment that can be read only beside its neighbour."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import paradit

PACKAGE = Path(paradit.__file__).parent
FRAGMENT = re.compile(r"(Of|From|What|As|By|Those|The same|And|Also)\b")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring, including those below variables."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:  # a lambda's body is not a list
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text


def test_no_docstring_is_a_fragment() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text.splitlines()[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in docstrings(path)
        if FRAGMENT.match(text)
    ]
    assert not found, "begin these with a noun or a verb:\n" + "\n".join(found)
