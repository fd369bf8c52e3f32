"""Writing of latents and videos to disk: each file is complete under its name, or absent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from paradit.engine.events import Growing, Wrote
from paradit.engine.job import Job
from paradit.files import write_whole
from paradit.models.protocol import Frames
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.provenance import tags
from paradit.video.writer import Video, growing_name, open_video


@dataclass(frozen=True)
class Written:
    """Result of writing a video's file: its number of frames, and the time when the first was written."""

    num_frames: int
    first_frame: float
    """Time when the first frame was written, on the monotonic clock."""


def write_output(
    job: Job,
    spec: ModelSpec,
    latents: Tensor | None,
    frames: Generator[Frames],
    *,
    overwrite: bool,
    about: dict[str, Any] | None = None,
    progress: Progress | None = None,
    name_next: Callable[[Path], None] | None = None,
) -> Written:
    """Write a job's video from its frames as they come, and save its latents if the job asks for them.

    latents: None if they come together with the frames, as a long video's do; the file can then be watched
    while it grows. about: record of what the video was made from, for its metadata; None: no metadata.
    name_next: function called with the path to the complete, still temporary file, just before it is renamed.
    """
    progress = progress or Progress()
    if job.latents is not None and latents is not None:
        # Saved before the decode, which may run out of memory, so that the costly part is safe.
        save_latents(job.latents, latents, job.about(spec), about)
    request = job.request
    part = growing_name(job.output) if latents is None else None
    if part is not None:
        progress.emit(Growing(job=job.index, path=str(part)))
    with (
        closing(frames),
        open_video(
            job.output,
            request.width,
            request.height,
            request.fps,
            overwrite=overwrite,
            part=part,
            name_next=name_next,
            tags=tags(about) if about else None,
            crf=job.crf,
        ) as file,
    ):
        first_frame = _write(file, frames, job, progress)
    return Written(file.num_frames, first_frame)


def _write(file: Video, frames: Generator[Frames], job: Job, progress: Progress) -> float:
    """Write frames to a video's file as they come, and return the time when the first frame was written."""
    first_frame = 0.0
    for frame in frames:
        if file.num_frames < job.request.num_frames:  # the last latent frame may decode to more
            file.write(frame)
            first_frame = first_frame or time.monotonic()
            progress.emit(Wrote(job=job.index, num_frames=file.num_frames))
    return first_frame


def save_latents(
    path: Path, latents: Tensor, fields: dict[str, Any], about: dict[str, Any] | None = None
) -> None:
    """Save latents [1, C, F, h, w] under the key `latents` of a safetensors file, completely or not at all.

    fields: result of `Job.about`, for the file's metadata. about: record of what the latents were made from,
    for the metadata of a video that is decoded from the file.
    """
    metadata = {key: str(value) for key, value in fields.items() if value is not None}
    if about:
        metadata["provenance"] = json.dumps(about)
    # safetensors' own save_file makes files that only their owner may read.
    write_whole(path, save({"latents": latents.contiguous().cpu()}, metadata=metadata))
