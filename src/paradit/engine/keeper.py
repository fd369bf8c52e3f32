"""Keeps what a run has done so far in its folder, as often as is worth it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from paradit.engine.job import Job
from paradit.engine.keep import save_latents
from paradit.engine.run_folder import RunFolder
from paradit.files import write_whole
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.sampling.sampler import Enough
from paradit.stopping import Interrupted, Stop

CHECKPOINT_SECONDS = 30.0
"""Work between two checkpoints, about, unless steps are counted."""


class Keeper:
    """One rank's, for all requests."""

    def __init__(self, folder: RunFolder, stop: Stop, report: Progress, steps: int | None = None) -> None:
        """steps: between two checkpoints; None: by time."""
        self._folder, self._stop, self._report, self._steps = folder, stop, report, steps
        self._warned = False

    def checkpoints(self, job: Job, device: torch.device) -> JobCheckpoints:
        """What is kept of a request's denoising. device: where finished blocks are wanted."""
        return JobCheckpoints(self, self._folder, job, self._stop, device)

    @contextmanager
    def heeding_stop(self) -> Iterator[None]:
        """Within, somebody looks after every step whether the run is to end."""
        self._stop.heeded = True
        try:
            yield
        finally:
            self._stop.heeded = False

    def has_latents(self, job: Job) -> bool:
        """Whether the request's final latents are there, and nothing but the decode is left to do."""
        return self._folder.latents(job.index).exists()

    def load_latents(self, job: Job) -> Tensor:
        """The request's final latents [1, C, F, h, w], fp32."""
        return load_file(self._folder.latents(job.index))["latents"]

    def save_latents(self, job: Job, latents: Tensor, spec: ModelSpec) -> None:
        """Make a request's final latents safe, before their decode. Raises Interrupted after a stop."""
        path = self._folder.latents(job.index)
        if self._written(lambda: save_latents(path, latents, job.about(spec))):
            self._folder.checkpoint(job.index).unlink(missing_ok=True)
        if self._stop.wanted:
            raise Interrupted

    def name_next(self, job: Job, video: Path) -> None:
        """The request's video is whole, and about to get its name."""
        self._folder.name_next(job.index, video)

    def finish(self, job: Job) -> None:
        """The request's video is there."""
        self._folder.finish(job)

    def read_checkpoint(self, job: Job, parse: Callable[[bytes], object]) -> bytes:
        """The last one of a request; empty where there is none that `parse` can read."""
        path = self._folder.checkpoint(job.index)
        try:
            content = path.read_bytes()
            parse(content)
        except FileNotFoundError:
            return b""
        except Exception as error:  # whatever torch finds wrong with it
            self._report.warn(f"checkpoint {str(path)!r} cannot be read, the request begins anew: {error}")
            return b""
        return content

    def write(self, path: Path, content: Callable[[], bytes]) -> None:
        """What can be gone on from, if it can be written."""
        self._written(lambda: write_whole(path, content()))

    def is_due(self, steps: int, seconds: float) -> bool:
        """Whether so much work is worth a checkpoint."""
        return steps >= self._steps if self._steps is not None else seconds >= CHECKPOINT_SECONDS

    def _written(self, write: Callable[[], None]) -> bool:
        # Work that goes on without a checkpoint is better than none.
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._report.warn(f"no checkpoint could be written ({error.strerror or error}): going on")
            self._warned = True
            return False
        return True


class JobCheckpoints:
    """`sampling.sampler.Checkpoints` of one request."""

    def __init__(self, keeper: Keeper, folder: RunFolder, job: Job, stop: Stop, device: torch.device) -> None:
        self._keeper, self._folder, self._job, self._stop = keeper, folder, job, stop
        self._device = device
        self._steps = 0
        self._began = time.monotonic()

    def last(self, parse: Callable[[bytes], object]) -> bytes:
        return self._keeper.read_checkpoint(self._job, parse)

    def offer(self, state: Callable[[], bytes], *, finished: int = 0, is_open: bool = False) -> None:
        """Keep a state if it is time to. Raises Interrupted if the run is to end, or, endless, Enough."""
        self._steps += 1
        now = time.monotonic()
        if is_open:
            self._keeper.write(self._folder.open_state(self._job.index), state)
        if self._stop.wanted or self._keeper.is_due(self._steps, now - self._began):
            self._keeper.write(self._folder.checkpoint(self._job.index), state)
            self._steps, self._began = 0, now
        if self._stop.wanted:
            raise Enough if self._job.request.endless and finished else Interrupted

    def block(self, number: int) -> Tensor:
        path = self._folder.block(self._job.index, number)
        kept: Tensor = torch.load(path, map_location=self._device, weights_only=True)
        return kept

    def keep(self, number: int, latents: Tensor) -> None:
        buffer = io.BytesIO()
        torch.save(latents.cpu(), buffer)
        self._keeper.write(self._folder.block(self._job.index, number), buffer.getvalue)
