"""A run's folder: what it was asked for, and what is safe of it. Torch-free.

    run.json            the requests, the model, the placement
    00000.step.pt       the last checkpoint of request 0, while it is denoised
    00000.block-0003.pt a finished block of a long video's latents
    00000.open.pt       its queue before the video's end showed in any block
    00000.safetensors   its final latents, until its video is there
    00000.done          its video is there, or about to get its name
    processes           who works, or worked, on it
    lock                held by the process that runs it

Every file is whole under its name, or not there. Of a request that is done nothing but the mark is kept; of a
long video also its blocks and its queue, from which it can be made longer.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.config.methods.base import read_resolved
from paradit.config.options import Declared, all_fields, named, read_all, read_object, read_values
from paradit.config.placement import Placement, placement_fields
from paradit.config.requests import ResolvedRequest
from paradit.engine.job import Job, Run
from paradit.files import name_words, remove, remove_left_lock, remove_parts, write_whole

_LOG = logging.getLogger(__name__)
VERSION = 1
"""What `run.json` has the form of; 0 is that of 0.1, which did not say."""
RUNS = "paradit-runs"
"""The folder of runs, beside their first video."""
SHOWN_RUNS = 5
"""Most runs that are named where one is not found."""


class RunFolder:
    """The folder of one run, which is at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, run: Run) -> RunFolder:
        """A new folder beside the run's first video. Raises InputError where it cannot be made."""
        first = run.jobs[0]
        beside = (first.make_folder or Path(first.output)).absolute().parent
        words = name_words(first.request.prompt)
        name = "-".join([*words[:4], time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)])
        path = beside / RUNS / name[-60:]  # a name has at most 255 bytes
        folder = cls(path)
        try:
            path.mkdir(parents=True)
            folder._write(run)
        except OSError as error:
            raise InputError(f"the run's folder {str(path)!r} cannot be made ({error.strerror})") from None
        _LOG.debug("made the run's folder %s", path)
        return folder

    def _write(self, run: Run) -> None:
        write_whole(self.path / "run.json", json.dumps(_as_json(run), indent=1).encode())

    def read(self) -> Run:
        """Return what the run was asked for. Raises InputError if the folder does not say it."""
        try:
            return _from_json(read_object((self.path / "run.json").read_text(encoding="utf-8"), "run.json"))
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)!r} is not the folder of a run: {error}") from None

    def checkpoint(self, index: int) -> Path:
        """Of the request's denoising."""
        return self.path / f"{index:05d}.step.pt"

    def latents(self, index: int) -> Path:
        """The request's final ones."""
        return self.path / f"{index:05d}.safetensors"

    def block(self, index: int, number: int) -> Path:
        """A finished block of the request's latents, counted from 0."""
        return self.path / f"{index:05d}.block-{number:04d}.pt"

    def open_state(self, index: int) -> Path:
        """The request's queue of blocks before the video's end showed in any of them."""
        return self.path / f"{index:05d}.open.pt"

    def num_blocks(self, index: int) -> int:
        """How many of the request's blocks are finished."""
        return next(number for number in count() if not self.block(index, number).exists())

    def reopen(self, run: Run) -> None:
        """Have longer videos to make: the queue is that before their end showed, whatever happens here."""
        for job in run.jobs:
            if self.open_state(job.index).exists():
                write_whole(self.checkpoint(job.index), self.open_state(job.index).read_bytes())
            self._mark(job.index).unlink(missing_ok=True)
        self._write(run)

    def is_denoised(self, job: Job) -> bool:
        """Whether the request's final latents are there, and nothing but the decode is left to do."""
        return self.latents(job.index).exists()

    def has_video(self, job: Job) -> bool:
        """Whether the request's video is there."""
        try:
            mark = self._mark(job.index).read_text()
        except OSError:
            return False
        return mark == _DONE or mark == _inode(Path(job.output))

    def is_done(self, job: Job) -> bool:
        """Whether there is nothing left to do. A video without end is never done."""
        return self.has_video(job) and not job.request.endless

    def is_extendable(self, job: Job) -> bool:
        """Whether the request's video is there, and can be made longer."""
        return self.is_done(job) and self.open_state(job.index).exists()

    def name_next(self, index: int, video: Path) -> None:
        """The request's video is whole, and its name is next: a kill just then must leave no doubt."""
        with contextlib.suppress(OSError):  # a full disk: it would only be done once more
            self._mark(index).write_text(_inode(video))

    def finish(self, job: Job) -> None:
        """The request's video has its name; what was safe of it and is not needed any more goes."""
        with contextlib.suppress(OSError):
            self._mark(job.index).write_text(_DONE)
        self.latents(job.index).unlink(missing_ok=True)
        if not job.request.endless:
            self.checkpoint(job.index).unlink(missing_ok=True)

    def has_something(self) -> bool:
        """Whether a later run could go on from here better than from the beginning."""
        # Somebody may have taken the folder away meanwhile.
        there = self.path.iterdir() if self.path.is_dir() else ()
        return any(path.suffix in (".pt", ".safetensors", ".done") for path in there)

    def remove(self) -> None:
        """Take the folder away, and that of all runs if it was the last."""
        _LOG.debug("removing the run's folder %s", self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one that runs it. Raises InputError where another process does."""
        import fcntl  # not on Windows

        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{str(self.path)!r} is being run already, by another process") from None
            yield

    def is_running(self) -> bool:
        """Return whether a process runs it now."""
        try:
            with self.locked():
                return False
        except InputError:
            return True

    def note_process(self, pid: int) -> None:
        """A process that may write the run's videos."""
        with contextlib.suppress(OSError), (self.path / "processes").open("a") as file:
            file.write(f"{pid}\n")

    def sweep(self, jobs: Iterable[Job], pids: Collection[int] | None = None) -> None:
        """Remove what these processes left half-written; without `pids`, all that have worked on it."""
        if pids is None:
            pids = self._processes()
            for job in jobs:
                remove_left_lock(job.output)
                if job.latents is not None:
                    remove_left_lock(job.latents)
                if job.growing is not None:
                    remove(job.growing)
        for folder in {self.path, *(Path(job.output).absolute().parent for job in jobs)}:
            remove_parts(folder, pids)

    def _processes(self) -> set[int]:
        try:
            return {int(line) for line in (self.path / "processes").read_text().split()}
        except (OSError, ValueError):
            return set()

    def _mark(self, index: int) -> Path:
        return self.path / f"{index:05d}.done"


_DONE = "done"


def _inode(path: Path) -> str:
    """Which file it is, whatever its name; of none, none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def find_run(path: Path) -> RunFolder:
    """Return the run at `path`. Raises InputError if there is none, naming the runs that there are."""
    if (path / "run.json").exists():
        return RunFolder(path)
    near = {path.absolute().parent, Path(RUNS).absolute(), path.absolute() / RUNS, path.absolute()}
    found = sorted({other.parent for folder in near for other in folder.glob("*/run.json")})
    names = {other.name: os.path.relpath(other) for other in found}
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    there = [names.pop(name) for name in close] + list(names.values())
    if not there:
        hint = f"there is no run below {str(Path(RUNS))!r} either: name a run's folder"
    else:
        more = f" and {len(there) - SHOWN_RUNS} more" if len(there) > SHOWN_RUNS else ""
        hint = f"there is {', '.join(there[:SHOWN_RUNS])}{more}"
    raise InputError(f"{str(path)!r} is not the folder of a run; {hint}")


def unfinished(folder: Path) -> list[RunFolder]:
    """The runs below `folder` that could be gone on with, the oldest first."""
    found = [RunFolder(path.parent) for path in (folder / RUNS).glob("*/run.json")]
    left = [run for run in found if not all(run.is_done(job) for job in run.read().jobs)]
    return sorted(left, key=lambda run: run.path.stat().st_mtime)


def _as_json(run: Run) -> dict[str, Any]:
    jobs = [plain_job(job) for job in run.jobs]
    return {"version": VERSION, **vars(run), "placement": json.loads(run.placement.to_json()), "jobs": jobs}


def _from_json(found: dict[str, Any]) -> Run:
    """Read what `_as_json` writes, in any version up to this. Raises InputError."""
    if type(version := found.pop("version", 0)) is not int or version not in range(VERSION + 1):
        raise InputError(f"its version is {shown(version)}, and this paradit reads those up to {VERSION}")
    parts = {
        "jobs": Declared.of("jobs", tuple[dict[str, Any], ...]),
        "placement": Declared.of("placement", dict[str, Any]),
    }
    values = read_all({**all_fields(Run), **parts}, found)
    jobs, number = [], len(values["jobs"])
    for index, job in enumerate(values["jobs"]):
        with named(f"job {index}"):
            jobs.append(job_of(job, index, number))
    with named("placement"):
        placement = Placement.of(**read_values(placement_fields(), values["placement"]))
    if not jobs:
        raise InputError("it has no jobs")
    return Run(**{**values, "placement": placement, "jobs": tuple(jobs)})


_JOB = {name: field for name, field in all_fields(Job).items() if name not in ("index", "count")}


def plain_job(job: Job) -> dict[str, Any]:
    """Return a job as plain values, without its number."""
    return {
        "request": asdict(job.request),
        "output": str(Path(job.output).absolute()),
        "latents": str(job.latents.absolute()) if job.latents else None,
        "crf": job.crf,
        "make_folder": str(job.make_folder.absolute()) if job.make_folder else None,
    }


def job_of(plain: dict[str, Any], index: int, count: int) -> Job:
    """Return what `plain_job` was called on. Raises InputError."""
    fields = read_all(_JOB | {"request": Declared.of("request", dict[str, Any])}, plain)
    return Job(**{**fields, "request": _request(fields["request"])}, index=index, count=count)


def _request(found: dict[str, Any]) -> ResolvedRequest:
    with named("request"):
        return read_resolved(found)
