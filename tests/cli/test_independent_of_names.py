"""Independence of names: everything works with other names for the methods and forms of attention."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import warm
from paradit.attention.registry import FORMS
from paradit.config.methods.registry import METHODS
from runs import named

RENAMED = """
import random

from paradit.attention.registry import FORMS
from paradit.config.methods.registry import METHODS

draw = random.Random(17)
for registry in (METHODS, FORMS):
    named = {}
    for name, where in registry._builtin.items():
        registry.find(name).name = new = "".join(draw.choices("abcdefghij", k=9))
        named[new] = where
    registry._builtin, registry._found = named, {}
"""
"""Program that renames everything. It runs in the interpreter from which commands and ranks are forked."""
QUICK = ("--num-inference-steps", "2", "--size", "32x32", "--json")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the environment in which everything is renamed, and the new names by the old ones."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "sitecustomize.py").write_text(RENAMED)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script = (
        "from paradit.attention.registry import FORMS; from paradit.config.methods.registry import METHODS; "
        "print(*METHODS.names(), *FORMS.names())"
    )
    new = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    old = [*METHODS.names(), *FORMS.names()]
    assert not set(old) & set(new)
    return {"environment": environment, **dict(zip(old, new, strict=True))}


def said(names: dict[str, Any], folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the events of a command."""
    done = warm.run(arguments, folder, names["environment"])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_videos_are_made(names: dict[str, Any], tmp_path: Path) -> None:
    ranks = ("--ranks", "2", "--attention", names["pipesp"], "--chunks", "2", "-o", "s.mp4")
    told = said(names, tmp_path, "generate", "a red circle", "--num-frames", "5", *ranks, *QUICK)
    assert [event["method"] for event in named(told, "result")] == [names["full"]]
    checkpoints = ("--ranks", "2", "--checkpoint-steps", "1", "-o", "l.mp4")
    long = said(names, tmp_path, "generate", "a red circle", "--duration", "4s", *checkpoints, *QUICK)
    (result,) = named(long, "result")
    assert (result["method"], result["num_frames"]) == (names["dualparal"], 64)
    assert named(long, "extendable")
    run = next((tmp_path / "paradit-runs").glob("*"))
    longer = said(names, tmp_path, "extend", str(run), "--num-frames", "16", "--json")
    (result,) = named(longer, "result")
    assert result["num_frames"] == 80


def test_they_are_planned(names: dict[str, Any], tmp_path: Path) -> None:
    model = ("--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "--gpus", "2xH100", "--duration", "8s")
    (plan,) = said(names, tmp_path, "plan", *model, "--json")
    assert {one["method"] for one in plan["best"]} == {names["full"], names["dualparal"]}
    forms = {"auto", *(names[form] for form in FORMS.names())}
    assert {one["placement"]["attention"] for one in plan["best"]} <= forms
    asked = ("--num-frames", "61", "--method", names["windowed"], "--ranks", "2", "--dry-run", "--explain")
    shown = said(names, tmp_path, "generate", "a red circle", *asked, *QUICK)
    assert shown[-1]["method"] == names["windowed"]
