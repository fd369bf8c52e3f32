"""Reservation of the names of a run's files, from before it loads anything until it ends. Torch-free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from paradit.engine.job import Job
from paradit.files import reserved
from paradit.launcher_environment import is_first_rank
from paradit.video.writer import check_file, check_target


@contextmanager
def files_reserved(jobs: Sequence[Job], trace: Path | None = None, *, overwrite: bool) -> Iterator[None]:
    """Reserve the names of all files that jobs write, and create their folders, while the `with` block runs.

    trace: path to a trace file that the run writes, too. overwrite: whether existing files may be replaced.
    Raises InputError if another run holds one of the names, or if a file exists that must not be replaced. If
    torchrun has started the ranks, the first rank does this for all.
    """
    if not is_first_rank():
        yield
        return
    with ExitStack() as held:
        for folder in dict.fromkeys(job.make_folder for job in jobs):
            if folder is not None and not folder.exists():
                folder.mkdir()
                held.callback(_remove_if_empty, folder)  # if the run has written nothing
        if trace is not None:
            held.enter_context(reserved("trace", trace))
            check_file("trace", trace, overwrite=overwrite)
        for job in jobs:
            held.enter_context(reserved("output", job.output))
            check_target(job.output, fps=job.request.fps, overwrite=overwrite, crf=job.crf)
            if job.latents is not None:
                held.enter_context(reserved("latents", job.latents))
                check_file("latents", job.latents, overwrite=overwrite)
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
