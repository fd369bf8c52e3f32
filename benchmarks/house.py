"""Print figures about the code and its language: import cycles, types, depth of the kernel, docstrings.

    python benchmarks/house.py [SRC ...]

SRC: folders that hold `paradit`, such as the `src` of several checkouts; each gets a column. Packages on
PYTHONPATH, such as a plug-in, are installed beside it for `--help`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

METHODS = ("full", "dualparal", "windowed", "fifo")
FORMS = ("ulysses", "pipesp", "pipesp-paper", "ring", "usp")
LONG = 40
"""Number of lines above which a function counts as long."""
HELP_TIMES = 5
WATCH = """
import os, sys, threading, traceback

def watch(frame, event, argument):
    name = getattr(argument, "__name__", "") if event == "c_call" else frame.f_code.co_name
    file = frame.f_code.co_filename
    start = event == "call" and name == "start" and file.endswith("multiprocessing/process.py")
    if not start and not (event == "c_call" and name == "scaled_dot_product_attention"):
        return
    own = [f"{one.filename.rpartition('paradit/')[2]}:{one.name}" for one in traceback.extract_stack(frame)
           if os.sep + "paradit" + os.sep in one.filename and "<module>" != one.name]
    if not start and not (own and own[-1].startswith("attention/")):
        return  # the text encoder's
    kind = "start" if start else "kernel"
    with open(os.path.join(os.environ["WATCHED"], f"{kind}-{os.getpid()}"), "w") as file:
        file.write("\\n".join(own))
    if not start:
        sys.setprofile(None)

sys.setprofile(watch)
threading.setprofile(watch)
"""


def main() -> None:
    sources = [Path(name).resolve() for name in sys.argv[1:]] or [Path(__file__).resolve().parents[1] / "src"]
    columns = [figures(source) for source in sources]
    for name in columns[0]:
        print(f"{name:<58}", *(f"{column[name]:>10}" for column in columns))


def figures(source: Path) -> dict[str, object]:
    files = {path: ast.parse(path.read_text()) for path in sorted((source / "paradit").rglob("*.py"))}
    functions = [
        node for tree in files.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]
    one, several = frames(source, []), frames(source, ["--ranks", "2", "--attention", "ulysses"])
    compared = {path: list(comparisons(tree)) for path, tree in files.items()}
    return {
        "files": len(files),
        "lines": sum(len(path.read_text().splitlines()) for path in files),
        f"functions over {LONG} lines": sum((f.end_lineno or 0) - f.lineno + 1 > LONG for f in functions),
        "bare Any": sum(bare_any(tree) for tree in files.values()),
        "circles between files": len(circles(source, files)),
        "lines that compare a method or in_blocks": sum(len(lines) for lines in compared.values()),
        "files that do": sum(bool(lines) for lines in compared.values()),
        "lines elsewhere that name a form of attention": sum(map(len, named(files, FORMS).values())),
        "files that do so": len(named(files, FORMS)),
        "own frames from main to the kernel, one process": one,
        "own frames from main to the kernel, two ranks": several,
        "seconds of --help, best of five": f"{help_seconds(source):.3f}",
        **language(source, files),
    }


FRAGMENT = re.compile(r"(Of|From|What|As|By|Those|The same|And|Also)\b")
"""Pattern of the beginnings of docstrings that cannot be read without their neighbours."""
WIDE = 120


def language(source: Path, files: dict[Path, ast.Module]) -> dict[str, object]:
    """Return figures about names, docstrings, comments and pages of a checkout."""
    texts = [text for tree in files.values() for text in docstrings(tree)]
    names = Counter(path.name for path in files if path.name != "__init__.py")
    pages = [*(source.parent / "docs").rglob("*.md"), source.parent / "README.md"]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    prose = [line for page in pages for line in page.read_text().splitlines() if not line.startswith("|")]
    return {
        "docstrings": len(texts),
        "docstrings that begin as fragments": sum(FRAGMENT.match(text) is not None for text in texts),
        "comment lines, % of all lines": f"{100 * sum(map(comments, files)) / lines:.1f}",
        "modules that share their name with another": sum(count for count in names.values() if count > 1),
        f"lines of prose over {WIDE} characters": sum(len(line) > WIDE for line in prose),
        "lines of README": len((source.parent / "README.md").read_text().splitlines()),
    }


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield each docstring, including those below variables."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:  # a lambda's body is not a list
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def comments(path: Path) -> int:
    """Return the number of comments in a file, at most one a line."""
    with path.open("rb") as file:
        found = [one for one in tokenize.tokenize(file.readline) if one.type == tokenize.COMMENT]
    return len(found)


UNTYPED = ("Any", "Untyped")
"""Names of `Any`; `Untyped` is an alias."""


def bare_any(tree: ast.AST) -> int:
    """Return the number of arguments, results and variables whose whole type is `Any`, under any name."""
    found = 0
    for node in ast.walk(tree):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found += sum(isinstance(note, ast.Name) and note.id in UNTYPED for note in notes)
    return found


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Return the numbers of the lines that compare something with a method's name, or read `in_blocks`."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if any(text in METHODS for text in texts if isinstance(text, str)):
                lines.add(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "in_blocks":
            lines.add(node.lineno)
    return iter(lines)


def named(files: dict[Path, ast.Module], names: tuple[str, ...]) -> dict[Path, set[int]]:
    """Return the lines that hold one of the names as a whole string, by file; docstrings do not count.

    Folders attention/, where the forms are, and shapes/, where a ring is a shape, are left out.
    """
    found = {}
    for path, tree in files.items():
        if {"attention", "shapes"} & set(path.parts):
            continue
        lines = {n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in names}
        if lines:
            found[path] = lines
    return found


def circles(source: Path, files: dict[Path, ast.Module]) -> list[set[str]]:
    """Return the groups of files that import each other, even for type checking only (Tarjan's algorithm)."""
    modules = {path: ".".join(path.relative_to(source).with_suffix("").parts) for path in files}
    modules = {path: name.removesuffix(".__init__") for path, name in modules.items()}
    known = set(modules.values())
    edges: dict[str, set[str]] = {}
    for path, tree in files.items():
        edges[modules[path]] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    edges[modules[path]].add(inner if inner in known else node.module)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name] & known:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def frames(source: Path, options: list[str]) -> int:
    """Return the number of own stack frames from main to the first attention kernel, over all processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(WATCH)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}:{source}",
            "WATCHED": name,
            "OMP_NUM_THREADS": "1",
        }
        words = [
            "a red circle",
            "--num-inference-steps",
            "1",
            "--num-frames",
            "5",
            "-o",
            f"{name}/v.mp4",
            *options,
        ]
        command = [sys.executable, "-m", "paradit", "generate", *words]
        subprocess.run(command, env=environment, cwd=name, capture_output=True, check=True, timeout=300)
        stacks = [path.read_text().splitlines() for path in sorted(folder.glob("kernel-*"))]
        deepest = max(stacks, key=len)
        started = [path.read_text().splitlines() for path in folder.glob("start-*")] if options else []
        if os.environ.get("SHOW"):
            print(*max(started, key=len, default=[]), "---", *deepest, sep="\n")
        return len(deepest) + len(max(started, key=len, default=[]))


def help_seconds(source: Path) -> float:
    """Return the shortest of several times of `--help`, in seconds, with bytecode compiled beforehand."""
    command, taken = [sys.executable, "-m", "paradit", "generate", "--help"], []
    with tempfile.TemporaryDirectory() as compiled:
        paths = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(1 + HELP_TIMES):  # the first run compiles the modules
            began = time.perf_counter()
            subprocess.run(command, env=environment, capture_output=True, check=True)
            taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    main()
