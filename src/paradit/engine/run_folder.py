"""A run's folder: what the run was asked for, and the progress that is saved. Torch-free.

    run.json            the requests, the model, the placement
    inputs/             copies of the pictures and videos that the requests give (`engine.run_inputs`)
    00000.step.pt       last checkpoint of request 0, while it is denoised
    00000.block-0003.pt denoised frame block 3 of a long video's latents
    00000.open.pt       its block queue, as it was before the video's end affected any block
    00000.safetensors   its final latents, until its video is written
    00000.done          mark: its video is written, or about to get its name
    processes           ids of the processes that work, or worked, on it
    lock                locked by the process that runs it

Every file is complete under its name, or absent. Once a request is done, only its mark is kept; for a long
video also its frame blocks and its queue, from which it can be made longer.
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
from paradit.config.methods.method import read_resolved
from paradit.config.options import Declared, all_fields, named, read_all, read_object, read_values
from paradit.config.placement import Placement, placement_fields
from paradit.config.requests import ResolvedRequest
from paradit.engine.job import Job, Run
from paradit.engine.run_inputs import absolute, check_copies, copied, relative
from paradit.files import name_words, remove, remove_left_lock, remove_parts, write_whole

_LOG = logging.getLogger(__name__)
VERSION = 1
"""Version of the format of `run.json`; 0 stands for ParaDiT 0.1, which wrote no version into its files."""
RUNS = "paradit-runs"
"""Name of the folder that holds the folders of runs; it stands beside each run's first video."""
SHOWN_RUNS = 5
"""Number of runs that an error lists, at most, if the one asked for is not found."""


class RunFolder:
    """Folder of one run: what the run was asked for, and the progress that is saved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, run: Run) -> RunFolder:
        """Create the folder of a run, beside the run's first video.

        Raises InputError if it cannot be created.
        """
        first = run.jobs[0]
        beside = (first.make_folder or Path(first.output)).absolute().parent
        words = name_words(first.request.prompt)
        name = "-".join([*words[:4], time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)])
        path = beside / RUNS / name[-60:]  # file names have at most 255 bytes
        folder = cls(path)
        try:
            path.mkdir(parents=True)
            folder._write(run)
        except OSError as error:
            raise InputError(f"the run's folder {str(path)!r} cannot be made ({error.strerror})") from None
        _LOG.debug("made the run's folder %s", path)
        return folder

    def _write(self, run: Run) -> None:
        plain = _as_json(relative(run, self.path))
        write_whole(self.path / "run.json", json.dumps(plain, indent=1).encode())

    def take_inputs(self, run: Run) -> Run:
        """Copy the pictures and videos that a new run's requests give, and return the run with the copies.

        Raises InputError, after removing the folder, if they cannot be copied.
        """
        try:
            kept = copied(run, self.path)
            if kept != run:
                self._write(kept)
        except OSError as error:
            self.remove()
            raise InputError(f"{str(error.filename)!r} cannot be copied ({error.strerror})") from None
        return kept

    def check_inputs(self, run: Run) -> None:
        """Raise InputError if copies of pictures and videos are missing or changed."""
        check_copies(run, self.path)

    def read(self) -> Run:
        """Return the run that the folder was created for. Raises InputError if `run.json` is not valid."""
        try:
            text = (self.path / "run.json").read_text(encoding="utf-8")
            return absolute(_from_json(read_object(text, "run.json")), self.path)
        except (OSError, ValueError) as error:
            raise InputError(f"{str(self.path)!r} is not the folder of a run: {error}") from None

    def checkpoint(self, index: int) -> Path:
        """Return the path to a request's last denoising checkpoint."""
        return self.path / f"{index:05d}.step.pt"

    def latents(self, index: int) -> Path:
        """Return the path to a request's final latents."""
        return self.path / f"{index:05d}.safetensors"

    def block(self, index: int, number: int) -> Path:
        """Return the path to the file of a request's denoised frame block `number`, counted from 0."""
        return self.path / f"{index:05d}.block-{number:04d}.pt"

    def open_state(self, index: int) -> Path:
        """Return the path to a request's saved block queue, from which its video can be made longer.

        The queue is as it was before the video's end affected any frame block.
        """
        return self.path / f"{index:05d}.open.pt"

    def num_blocks(self, index: int) -> int:
        """Return the number of frame blocks of a request's video that are saved."""
        return next(number for number in count() if not self.block(index, number).exists())

    def reopen(self, run: Run) -> None:
        """Prepare a finished run for making its videos longer.

        The longer videos resume from the saved block queues, as they were before the old end affected any
        frame block. So an interruption here does no harm: the old, shorter videos can be resumed from these
        queues, too.
        """
        for job in run.jobs:
            if self.open_state(job.index).exists():
                write_whole(self.checkpoint(job.index), self.open_state(job.index).read_bytes())
            self._mark(job.index).unlink(missing_ok=True)
        self._write(run)  # last: until then `run.json` asks for the old, shorter videos

    def is_denoised(self, job: Job) -> bool:
        """Return whether the request's final latents are saved, so that only the decode is left to do."""
        return self.latents(job.index).exists()

    def has_video(self, job: Job) -> bool:
        """Return whether the request's video is complete, under its name."""
        try:
            mark = self._mark(job.index).read_text()
        except OSError:
            return False
        # `name_next` marks the file. If this process was killed then, the video is complete if that very file
        # has got the final name.
        return mark == _DONE or mark == _inode(Path(job.output))

    def is_done(self, job: Job) -> bool:
        """Return whether nothing is left to do for the request. An endless video is never done."""
        return self.has_video(job) and not job.request.endless

    def is_extendable(self, job: Job) -> bool:
        """Return whether the request's video is complete and can be made longer."""
        return self.is_done(job) and self.open_state(job.index).exists()

    def name_next(self, index: int, video: Path) -> None:
        """Record that a request's video is about to be renamed to its final name.

        If this process is killed just then, `has_video` still knows whether the video is complete.
        """
        with contextlib.suppress(OSError):  # a full disk: at worst the video is written again
            self._mark(index).write_text(_inode(video))

    def finish(self, job: Job) -> None:
        """Mark the request as done, and remove saved progress that is no longer needed."""
        with contextlib.suppress(OSError):
            self._mark(job.index).write_text(_DONE)
        self.latents(job.index).unlink(missing_ok=True)
        if not job.request.endless:
            self.checkpoint(job.index).unlink(missing_ok=True)

    def has_something(self) -> bool:
        """Return whether a later run can resume from this folder instead of beginning anew."""
        # The user may have removed the folder meanwhile.
        there = self.path.iterdir() if self.path.is_dir() else ()
        return any(path.suffix in (".pt", ".safetensors", ".done") for path in there)

    def remove(self) -> None:
        """Remove this run's folder, and the folder that holds all runs if this run was the last in it."""
        _LOG.debug("removing the run's folder %s", self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)  # a rank may have noted its process meanwhile
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock while the `with` block runs. Raises InputError if another process holds it."""
        import fcntl  # not on Windows

        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{str(self.path)!r} is already running in another process") from None
            yield

    def is_running(self) -> bool:
        """Return whether a process is working on the run now."""
        try:
            with self.locked():
                return False
        except InputError:
            return True

    def note_process(self, pid: int) -> None:
        """Record the id of a process that may write the run's videos, for `sweep` to find leftover files."""
        with contextlib.suppress(OSError), (self.path / "processes").open("a") as file:
            file.write(f"{pid}\n")

    def sweep(self, jobs: Iterable[Job], pids: Collection[int] | None = None) -> None:
        """Remove half-written files that were left by processes which have ended.

        pids: ids of these processes. None: all processes that have worked on the run; then locks on the
        videos, and videos that were growing, are removed, too.
        """
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
    """Return a file's device and inode numbers, which survive a rename; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def find_run(path: Path) -> RunFolder:
    """Return the run at `path`. Raises InputError if there is none, and lists the runs nearby."""
    if (path / "run.json").exists():
        return RunFolder(path)
    near = {path.absolute().parent, Path(RUNS).absolute(), path.absolute() / RUNS, path.absolute()}
    found = sorted({other.parent for folder in near for other in folder.glob("*/run.json")})
    names = {other.name: os.path.relpath(other) for other in found}
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    there = [names.pop(name) for name in close] + list(names.values())
    if not there:
        hint = f"there are no runs in {str(Path(RUNS))!r} either: name a run's folder"
    else:
        more = f" and {len(there) - SHOWN_RUNS} more" if len(there) > SHOWN_RUNS else ""
        hint = f"runs found: {', '.join(there[:SHOWN_RUNS])}{more}"
    raise InputError(f"{str(path)!r} is not the folder of a run; {hint}")


def unfinished(folder: Path) -> list[RunFolder]:
    """Return the folders of unfinished runs below `folder`, the oldest first."""
    found = [RunFolder(path.parent) for path in (folder / RUNS).glob("*/run.json")]
    left = [run for run in found if not all(run.is_done(job) for job in run.read().jobs)]
    return sorted(left, key=lambda run: run.path.stat().st_mtime)


def _as_json(run: Run) -> dict[str, Any]:
    jobs = [plain_job(job) for job in run.jobs]
    parts = {"placement": json.loads(run.placement.to_json()), "loras": [asdict(lora) for lora in run.loras]}
    return {"version": VERSION, **vars(run), **parts, "jobs": jobs}


def _from_json(found: dict[str, Any]) -> Run:
    """Return the run that `_as_json` has written to `run.json`, in any version up to this one.

    Raises InputError if it is not valid.
    """
    if type(version := found.pop("version", 0)) is not int or version not in range(VERSION + 1):
        raise InputError(
            f"its version is {shown(version)}, but this paradit reads only versions up to {VERSION}"
        )
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
    """Return a job as plain values, without its index in the run and the number of the run's jobs."""
    return {
        "request": asdict(job.request),
        "output": str(Path(job.output).absolute()),
        "latents": str(job.latents.absolute()) if job.latents else None,
        "crf": job.crf,
        "make_folder": str(job.make_folder.absolute()) if job.make_folder else None,
    }


def job_of(plain: dict[str, Any], index: int, count: int) -> Job:
    """Return a job made from the plain values of `plain_job`. Raises InputError for invalid ones."""
    fields = read_all(_JOB | {"request": Declared.of("request", dict[str, Any])}, plain)
    return Job(**{**fields, "request": _request(fields["request"])}, index=index, count=count)


def _request(found: dict[str, Any]) -> ResolvedRequest:
    with named("request"):
        return read_resolved(found)
