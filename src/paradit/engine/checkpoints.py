"""Saving of a request's progress in its run's folder: checkpoints, frame blocks and final latents."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from paradit.engine.job import Job
from paradit.engine.output import save_latents
from paradit.engine.run_folder import RunFolder
from paradit.files import write_whole
from paradit.models.spec import ModelSpec
from paradit.progress import Progress

_LOG = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 30.0
"""Seconds of work, about, between two checkpoints, unless the user sets a number of steps."""


class SavedProgress:
    """Writer and reader, on one rank, of the saved progress of one request: its checkpoints and latents."""

    def __init__(
        self,
        folder: RunFolder,
        job: Job,
        progress: Progress,
        wanted: Callable[[], bool],
        steps: int | None = None,
    ) -> None:
        """Prepare to save the progress of `job` in its run's folder.

        wanted: function that returns whether the request is still wanted. steps: denoising steps between
        checkpoints; None: by time (`CHECKPOINT_SECONDS`).
        """
        self._folder, self._job, self._progress, self._steps = folder, job, progress, steps
        self.wanted = wanted
        self._warned = False
        self._done, self._began = 0, time.monotonic()

    def load_latents(self) -> Tensor:
        """Load the request's final latents [1, C, F, h, w], fp32."""
        return load_file(self._folder.latents(self._job.index))["latents"]

    def save_latents(self, latents: Tensor, spec: ModelSpec) -> None:
        """Save the final latents, from which a failed decode can be resumed; then remove the checkpoint."""
        path = self._folder.latents(self._job.index)
        if self._written(lambda: save_latents(path, latents, self._job.about(spec))):
            self._folder.checkpoint(self._job.index).unlink(missing_ok=True)
            _LOG.debug("wrote %s", path)

    def name_next(self, video: Path) -> None:
        """Record on disk that the video's file is complete and is about to be renamed to its final name."""
        self._folder.name_next(self._job.index, video)

    def finish(self) -> None:
        """Mark the request as done, and remove its saved progress that is no longer needed."""
        self._folder.finish(self._job)

    def checkpoints(self, device: torch.device) -> JobCheckpoints:
        """Return the object through which a sampler saves and loads checkpoints of this request.

        device: device onto which frame blocks are loaded.
        """
        return JobCheckpoints(self, self._folder, self._job, device)

    def read_checkpoint(self, parse: Callable[[bytes], object]) -> bytes:
        """Return the content of the last checkpoint; empty if there is none, or `parse` cannot read it."""
        path = self._folder.checkpoint(self._job.index)
        try:
            content = path.read_bytes()
            parse(content)
        except FileNotFoundError:
            return b""
        except Exception as error:  # torch raises many kinds for a damaged file
            self._progress.warn(
                f"checkpoint {str(path)!r} cannot be read, so the request starts from the beginning: {error}"
            )
            return b""
        _LOG.info("resuming from %s", path)
        return content

    def offer(self, checkpoint: Callable[[], bytes]) -> bool:
        """Save a checkpoint if one is due; return whether the request is still wanted.

        To be called after every step. If the request is no longer wanted, a checkpoint is saved in any case.
        """
        self._done += 1
        now, wanted = time.monotonic(), self.wanted()
        due = self._done >= self._steps if self._steps else now - self._began >= CHECKPOINT_SECONDS
        if due or not wanted:
            self.write(self._folder.checkpoint(self._job.index), checkpoint)
            self._done, self._began = 0, now
        return wanted

    def write(self, path: Path, content: Callable[[], bytes]) -> None:
        """Write a file from which the request can be resumed; if that fails, warn once and continue."""
        if self._written(lambda: write_whole(path, content())):
            _LOG.debug("wrote %s", path)

    def _written(self, write: Callable[[], None]) -> bool:
        # It is better to continue without a checkpoint than to fail.
        try:
            write()
        except OSError as error:
            if not self._warned and self.wanted():  # the folder of a cancelled request may be gone
                self._progress.warn(
                    f"no checkpoint could be written ({error.strerror or error}): continuing without it"
                )
            self._warned = True
            return False
        return True


class JobCheckpoints:
    """Checkpoints of one request in its run's folder, behind the interface that samplers use.

    The interface is `sampling.sampler.Checkpoints`.
    """

    def __init__(
        self, saved_progress: SavedProgress, folder: RunFolder, job: Job, device: torch.device
    ) -> None:
        self._saved_progress, self._folder, self._job, self._device = saved_progress, folder, job, device

    def last(self, parse: Callable[[bytes], object]) -> bytes:
        return self._saved_progress.read_checkpoint(parse)

    def offer(self, state: Callable[[], bytes], *, is_open: bool = False) -> bool:
        if is_open:
            self._saved_progress.write(self._folder.open_state(self._job.index), state)
        return self._saved_progress.offer(state)

    def block(self, number: int) -> Tensor:
        path = self._folder.block(self._job.index, number)
        kept: Tensor = torch.load(path, map_location=self._device, weights_only=True)
        return kept

    def keep(self, number: int, latents: Tensor) -> None:
        buffer = io.BytesIO()
        torch.save(latents.cpu(), buffer)
        self._saved_progress.write(self._folder.block(self._job.index, number), buffer.getvalue)
