"""Registries: things are found by name without importing the others, and other packages add some."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from messages import says
from paradit.config.errors import InputError
from paradit.config.plugins import Registry

GROUP = "paradit.dishes"
BUILTIN = {"soup": "kitchen.soup:SOUP", "stew": "kitchen.stew:STEW"}
DISHES = """
import sys
import paradit.config.plugins as plugins_module
from paradit.config.plugins import Registry, plugins

dishes = Registry("dish", "paradit.dishes", {"soup": "kitchen.soup:SOUP", "stew": "kitchen.stew:STEW"})
"""


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """Return a folder with a package of two dishes, each in a module of its own."""
    package = tmp_path / "kitchen"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("soup", "stew"):
        (package / f"{name}.py").write_text(f"{name.upper()} = 'hot {name}'\n")
    return tmp_path


def plug_in(folder: Path, name: str, points: dict[str, str], module: str = "") -> None:
    """Install a package with entry points, and a module of the same name, into a folder."""
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    (folder / f"{name}.py").write_text(module)


def run(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", DISHES + script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(folder: Path, script: str, **environment: str) -> list[str]:
    done = run(folder, script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_names_are_known_without_importing(kitchen: Path) -> None:
    plug_in(kitchen, "bakery", {"bread": "bakery:BREAD"}, "BREAD = 'fresh bread'")
    script = """
print(*dishes.names())
print("kitchen" in sys.modules, "bakery" in sys.modules)
print(dishes.find("soup"), "kitchen.stew" in sys.modules)
print(dishes.find("bread"))
print(*dishes.all(), sep=", ")
"""
    names, before, soup, bread, everything = said(kitchen, script)
    assert names == "soup stew bread"
    assert before == "False False"
    assert soup == "hot soup False"
    assert bread == "fresh bread"
    assert everything == "hot soup, hot stew, fresh bread"


def test_an_unknown_name_gets_the_nearest() -> None:
    dishes: Registry[str] = Registry("dish", GROUP, BUILTIN)
    with pytest.raises(InputError, match="soup, stew, got 'sop': did you mean 'soup'"):
        dishes.find("sop")
    with pytest.raises(InputError, match=r"dish must be one of soup, stew, got 'xyz'$"):
        dishes.find("xyz")


def test_a_plug_in_that_fails_is_named_and_left_out(kitchen: Path) -> None:
    plug_in(kitchen, "bakery", {"bread": "bakery:BREAD"}, "BREAD = 'fresh bread'")
    plug_in(kitchen, "grill", {"ash": "grill:ASH"}, "raise OSError('no\\n coal')")
    plug_in(kitchen, "bar", {"cake": "bar:CAKE"})
    script = """
print(*dishes.all(), sep=", ")
print(*dishes.all(), sep=", ")
try:
    dishes.find("ash")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run(kitchen, script)
    first, again, error = done.stdout.splitlines()
    assert first == again == "hot soup, hot stew, fresh bread"
    assert says(error, "InputError .. dish 'ash' .. no coal")
    ash, cake = done.stderr.splitlines()
    assert says(ash, "dish 'ash' .. no coal") and says(cake, "dish 'cake'")


def test_built_in_names_are_not_shadowed(kitchen: Path) -> None:
    plug_in(kitchen, "bakery", {"soup": "bakery:SOUP", "bread": "bakery:BREAD"}, "SOUP = BREAD = 'bread'")
    plug_in(kitchen, "other", {"bread": "other:BREAD"}, "BREAD = 'other bread'")
    done = run(kitchen, "print(*dishes.names(), dishes.find('soup'))")
    assert done.stdout.strip() == "soup stew bread hot soup"
    assert says(done.stderr, "dish 'soup' of bakery:SOUP is left out .. built in")
    assert "is left out: the name comes from two packages" in done.stderr


def test_plug_ins_can_be_left_out(kitchen: Path) -> None:
    plug_in(kitchen, "bakery", {"bread": "bakery:BREAD"}, "BREAD = 'fresh bread'")
    script = "print(*dishes.names(), plugins())"
    assert said(kitchen, script, PARADIT_PLUGINS="off") == ["soup stew []"]


def test_the_identity_says_plug_ins_and_versions(kitchen: Path) -> None:
    plug_in(kitchen, "bakery", {"bread": "bakery:BREAD"}, "BREAD = 'fresh bread'")
    script = "plugins_module.GROUPS = ['paradit.dishes']; print(*plugins())"
    assert said(kitchen, script) == ["paradit.dishes bread of bakery 1.2"]


def test_what_is_built_in_fails_aloud() -> None:
    dishes: Registry[str] = Registry("dish", GROUP, {"soup": "kitchen.nowhere:SOUP"})
    with warnings.catch_warnings(), pytest.raises(ImportError):
        warnings.simplefilter("error")
        dishes.find("soup")
