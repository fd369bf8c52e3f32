"""Documentation: it builds without warnings, its links resolve, and its commands exist."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import paradit
from paradit.cli.main import COMMANDS, app
from paradit.video.writer import open_video
from paths import ROOT

DOCS = ROOT / "docs"
SITE = sorted(DOCS.rglob("*.md"))
PAGES = [
    *SITE,
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob(".github/**/*.md")),
]
LONGEST = 120
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SOURCES = (ROOT, ROOT / "src" / "paradit", ROOT / "src" / "paradit" / "planner", ROOT / "tests")
"""Folders whose files pages refer to."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parts(page: Path) -> Iterator[tuple[int, bool, str]]:
    """Yield each line of a page, with its number and whether it is code."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        yield number, code or fence, line
        code = code != fence


def prose(page: Path) -> str:
    return "\n".join(line for _, code, line in parts(page) if not code)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and GitHub generate them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in words}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "guides" / "first_video" / "index.html").exists()


def test_every_page_is_in_the_navigation() -> None:
    def named(entries: object) -> Iterator[str]:
        if isinstance(entries, str):
            yield entries
        for entry in (
            entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else []
        ):
            yield from named(entry)

    found = sorted(named(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert found == sorted(str(page.relative_to(DOCS)) for page in SITE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
        assert page not in SITE or target.is_relative_to(DOCS), f"{link} is not on the site"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_prose_are_short(page: Path) -> None:
    for number, code, line in parts(page):
        assert code or line.startswith("|") or len(line) <= LONGEST, f"line {number}"


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_files_that_pages_name_are_there(page: Path) -> None:
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|json))`", prose(page)):
        assert any((folder / name).exists() for folder in SOURCES), name


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of the `paradit` commands in a page's shell blocks."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["paradit"]:
                yield words[1:]
            elif "paradit" in words and words[0] == "torchrun":
                yield words[words.index("paradit") + 1 :]


def test_every_argument_of_generate_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for name in inspect.signature(paradit.generate).parameters:
        assert re.search(rf"^    {name}\b", page, re.MULTILINE), name


SHOWN = [*sorted((DOCS / "guides").glob("*.md")), DOCS / "index.md", ROOT / "README.md"]
"""Pages whose commands a reader will try."""


@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_commands_of_guides_are_accepted(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that make a video run as dry runs; the options of all others are parsed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue ring bouncing\n")
    (tmp_path / "requests.jsonl").write_text('{"prompt": "a red circle", "image": "first.png"}\n')
    for name in ("first.png", "last.png"):
        Image.new("RGB", (96, 96), "red").save(tmp_path / name)
    with open_video(tmp_path / "circle.mp4", 96, 96, 16) as video:
        for _ in range(17):
            video.write(np.zeros((96, 96, 3), np.uint8))
    group: Any = typer.main.get_command(app)
    for words in commands(page):
        if words[0] == "generate" and "auto" not in words:  # auto imports torch, to look for GPUs
            app([*words, "--dry-run"], standalone_mode=False)
            assert "tokens" in capsys.readouterr().out, words
        elif words[0] in COMMANDS:
            command = group.get_command(typer.Context(group), words[0])
            assert command is not None
            command.make_context(words[0], words[1:])
        else:
            assert words[:2] == ["trace", "summary"]
