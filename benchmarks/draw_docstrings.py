"""Print docstrings of the package, drawn at random, each with nothing but the name that it stands at.

    python benchmarks/draw_docstrings.py SEED [NUMBER]

A reader who does not know the code says of each whether it is clear at once, makes one stumble, or cannot be
understood. The results are in docs/results/language.md.
"""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "paradit"


def main() -> None:
    seed, number = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    found = [
        pair
        for path in sorted(PACKAGE.rglob("*.py"))
        for pair in docstrings(ast.parse(path.read_text()), str(path.relative_to(PACKAGE)))
    ]
    for index, (name, text) in enumerate(random.Random(seed).sample(found, number), start=1):
        print(f"{index}. {name}\n   {' '.join(text.split())}\n")


def docstrings(scope: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the docstrings of a module, class or function, and of all that it holds."""
    before: ast.AST = scope
    for index, node in enumerate(getattr(scope, "body", [])):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield (name if index == 0 else assigned(before)), node.value.value
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from docstrings(node, node.name)
        before = node


def assigned(node: ast.AST) -> str:
    """Return the name that an assignment sets, such as a field of a class."""
    target = node.target if isinstance(node, ast.AnnAssign) else None
    target = node.targets[0] if isinstance(node, ast.Assign) else target
    return "?" if target is None else ast.unparse(target)


if __name__ == "__main__":
    main()
