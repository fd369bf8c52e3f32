"""Options, each declared once: their help, their documentation, and suggestions for wrong names."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import MISSING
from pathlib import Path
from types import ModuleType

import pytest
import typer

import paradit
from paradit.cli.commands.command import Entry
from paradit.cli.commands.trace_options import SUMMARY
from paradit.cli.main import COMMANDS, app
from paradit.config.errors import InputError
from paths import ROOT

PACKAGE = Path(paradit.__file__).parent
ENTRIES: dict[str, Entry] = {**COMMANDS, "trace summary": SUMMARY}


def texts(path: Path) -> set[str]:
    """Return all string constants in a Python file; adjacent literals count as one."""
    found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    return {value for value in found if isinstance(value, str)}


def test_help_and_name_stand_in_one_file() -> None:
    sources = {path: texts(path) for path in PACKAGE.rglob("*.py")}
    for command, entry in ENTRIES.items():
        for name, field in entry.fields().items():
            if callable(field.option.help):  # the forms and methods provide the help text
                continue
            said = [path for path, found in sources.items() if field.option.help in found]
            assert len(said) == 1, (command, name, said)
            (file,) = said
            wanted = rf"\b{name}: |\b{''.join(part.capitalize() for part in name.split('_'))}\b|\bJson"
            assert re.search(wanted, file.read_text()), (command, name, file)


def generator() -> ModuleType:
    path = ROOT / "benchmarks" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_of_the_reference_are_up_to_date() -> None:
    made = generator()
    marked: list[str] = []
    for page in made.PAGES:
        text = page.read_text(encoding="utf-8")
        assert text == made.filled(text), f"{page.name}: run benchmarks/reference_pages.py"
        marked += [found[1] for found in made.MARKED.findall(text)]
    assert sorted(marked) == sorted(made.TABLES)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    {
        "--steps": "--num-inference-steps",
        "--frames": "--num-frames",
        "--cfg": "--guidance-scale",
        "--gpus": "--ranks",
        "--resolution": "--size",
        "--num-frame": "--num-frames",
        "--guidance": "--guidance-scale",
        "--ring-degre": "--ring-degree",
        "--precision": "--dtype",
        "--quality": "--crf",
        "--out": "--output",
    }.items(),
)
def test_a_wrong_option_is_answered_by_the_one_that_is_meant(wrong: str, meant: str) -> None:
    with pytest.raises(typer.TyperException) as caught:
        app(["generate", "a", wrong, "3"], standalone_mode=False)
    assert caught.value.format_message() == f"No such option: {wrong} (Possible options: {meant})"


FILES = [
    (command, name)
    for command, entry in ENTRIES.items()
    for name, field in entry.fields().items()
    if field.kind is Path or name == "output"
]


def given(command: str, name: str, value: str) -> list[str]:
    """Return a command line with this value for one option, and any value for each that must be given."""
    words = command.split()
    for other, field in ENTRIES[command].fields().items():
        flag = [] if field.option.argument else [f"--{other.replace('_', '-')}"]
        if other == name or field.default is MISSING:
            words += [*flag, value if other == name else "x"]
    return words


@pytest.mark.parametrize(("command", "name"), FILES)
def test_names_that_no_file_should_have(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value, said in {"-": "'-' would be a stream", "": "is empty", " ": "is empty"}.items():
        with pytest.raises(InputError) as caught:
            app(given(command, name, value), standalone_mode=False)
        assert str(caught.value).startswith(f"{name} {said}")
    assert not list(tmp_path.iterdir())


def test_a_file_may_have_the_name_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoint '-' does not exist"):
        app(["convert", "./-", "-o", "a"], standalone_mode=False)


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "x", "-o", "--transformer", "y"],
        ["generate", "a", "-o", "--overwrite"],
        ["generate", "a", "--negative-prompt", "-o"],
        ["decode", "x", "-o", "--help"],
        ["generate", "a", "--lora", "--no-metadata"],
    ],
)
def test_an_option_without_its_value(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="needs a value, but the next word is the option -"):
        app(words, standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_a_word_means_one_option() -> None:
    for command, entry in ENTRIES.items():
        words = [
            word
            for name, field in entry.fields().items()
            for word in (name.replace("_", "-"), *field.option.also)
            if not field.option.argument
        ]
        assert len(words) == len(set(words)), (command, sorted(words))
