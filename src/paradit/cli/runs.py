"""Command `paradit runs`: list the runs below a folder, with their sizes and states, or remove some."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from paradit.cli.commands.runs_options import RunsOptions
from paradit.cli.text import amount, table
from paradit.config.errors import InputError
from paradit.engine.run_folder import RUNS, RunFolder, find_run
from paradit.files import named
from paradit.streams import code_of_output


@dataclass(frozen=True, kw_only=True)
class Found:
    """Entry in the list of runs: one run's folder, with its state and size."""

    run: str
    """Path to the run's folder, in the form that `resume`, `extend` and `--remove` accept."""
    state: str
    """State of the run: `running`, `unfinished`, `extendable`, `done` or `damaged`."""
    videos: int | None
    """Number of videos that the run was asked for; None if the run cannot be read."""
    videos_done: int | None
    size_bytes: int
    changed: float
    """Time at which a file in the run's folder was last written, in seconds since 1970."""
    model: str | None
    why: str | None = None
    """Reason why the run cannot be read, if it is damaged; None if it can be read."""


def runs(options: RunsOptions) -> int:
    """Print the runs below a folder, or remove some, and return the exit code.

    Raises InputError if the folder, or a run to remove, does not exist.
    """
    if options.remove:
        _remove(options.folder, options.remove, as_json=options.json)
    else:
        _list(options.folder, as_json=options.json)
    return code_of_output()


def _list(folder: Path, *, as_json: bool) -> None:
    """Print the runs below a folder, newest first. Raises InputError if the folder does not exist."""
    found = sorted(_found(folder), key=lambda one: -one.changed)
    if as_json:
        for one in found:
            print(json.dumps(asdict(one)))
        return
    if not found:
        print(f"no runs in {str(_runs(folder))!r}")
        return
    rows = [("run", "changed", "size", "model", "state"), *(_row(one) for one in found)]
    print(table(rows, left=("run", "model", "state")))
    if len(found) > 1:
        print(f"{len(found)} runs, {amount(sum(one.size_bytes for one in found), 'B')}")


def _remove(folder: Path, names: list[str], *, as_json: bool) -> None:
    """Remove the folders of the named runs.

    Raises InputError, and removes none, if a run is missing or running.
    """
    there = [_named(folder, name) for name in names]
    for run in there:
        if run.is_running():
            raise InputError(f"{str(run.path)!r} is running: stop it first")
    for run in there:
        size = _size(run.path)
        run.remove()
        if as_json:
            print(json.dumps({"run": str(run.path), "state": "removed", "size_bytes": size}))
        else:
            print(f"removed {run.path} ({amount(size, 'B')})")


def _named(folder: Path, name: str) -> RunFolder:
    """Return the folder of the run called `name`: the name of a run in `folder`, or a path.

    Raises InputError if there is no such run.
    """
    path = named("run", name)
    inside = _runs(folder) / path
    return find_run(inside if (inside / "run.json").exists() else path)


def _runs(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a folder")
    return folder if folder.name == RUNS else folder / RUNS


def _found(folder: Path) -> Iterator[Found]:
    for path in _runs(folder).glob("*/run.json"):
        try:
            yield _look_at(RunFolder(path.parent))
        except FileNotFoundError:  # the run has just ended, and its folder is gone
            continue


def _look_at(run: RunFolder) -> Found:
    state, why, model, videos, done = "damaged", None, None, None, None
    try:
        asked = run.read()
    except InputError as error:
        why = str(error)
    else:
        ready = [job for job in asked.jobs if run.is_done(job)]
        model, videos, done = asked.model, len(asked.jobs), len(ready)
        if len(ready) < len(asked.jobs):
            state = "unfinished"
        else:
            state = "extendable" if any(run.is_extendable(job) for job in ready) else "done"
    return Found(
        run=str(run.path),
        state="running" if run.is_running() else state,
        videos=videos,
        videos_done=done,
        size_bytes=_size(run.path),
        changed=max(path.stat().st_mtime for path in run.path.iterdir()),
        model=model,
        why=why,
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _row(one: Found) -> tuple[str, ...]:
    states = {
        "running": f"running, {one.videos_done} of {one.videos} videos done",
        "unfinished": f"{one.videos_done} of {one.videos} videos done: paradit resume",
        "extendable": "can be extended: paradit extend",
        "done": "done",
        "damaged": f"damaged: {one.why}",
    }
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.changed))
    return one.run, changed, amount(one.size_bytes, "B"), one.model or "?", states[one.state]
