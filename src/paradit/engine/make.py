"""Load the model once and make the videos: the program of every rank, and of a run without ranks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from paradit.engine.job import Job, Report
from paradit.memory import keep_freed_memory, peak_memory_bytes
from paradit.models.spec import ModelSpec
from paradit.sampling.team import Alone, Team
from paradit.text_to_video import Video, load, text_to_video
from paradit.video.writer import open_video, temporary_name


def make_videos(
    jobs: list[Job],
    spec: ModelSpec,
    report: Report,
    *,
    overwrite: bool,
    team: Team | None = None,
    device: torch.device | None = None,
    compile: bool = False,
) -> None:
    """Make the videos of `jobs`, one after the other. All ranks of a team call it; the first one writes."""
    team = team or Alone()
    keep_freed_memory()
    dtype = jobs[0].request.dtype
    model = load(spec, dtype, report, device=device, denoise_only=not team.is_first, compile=compile)
    for index, job in enumerate(jobs):
        report.request(index, len(jobs), job.request.prompt)
        before = dict(report.seconds) if index else {}  # loading counts for the first
        video = text_to_video(model, job.request, report, team)
        if team.is_first:
            _keep(job, spec, video, overwrite)
        seconds = {name: total - before.get(name, 0.0) for name, total in report.seconds.items()}
        memory = team.gather_number(peak_memory_bytes(model.device))
        report.result({
            **job.about(spec),
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in seconds.items() if took > 0},
            "device": model.device.type,
            "peak_memory_bytes": max(memory),
            "peak_memory_bytes_by_rank": memory,
        })  # fmt: skip


def _keep(job: Job, spec: ModelSpec, video: Video, overwrite: bool) -> None:
    if job.latents is not None:
        # Before the decode, which may run out of memory: the costly part is then safe.
        _save_latents(job.latents, video.latents, job.about(spec))
    if job.make_folder is not None:
        job.make_folder.mkdir(exist_ok=True)
    request = job.request
    assert request.width and request.height and request.fps
    with (
        closing(video.frames()) as frames,
        open_video(job.output, request.width, request.height, request.fps, overwrite=overwrite) as file,
    ):
        for frame in frames:
            file.write(frame)


def _save_latents(path: Path, latents: torch.Tensor, about: dict[str, Any]) -> None:
    """Save `[1, C, F, h, w]` under the key `latents`, whole or not at all."""
    part = temporary_name(path)
    metadata = {key: str(value) for key, value in about.items() if value is not None}
    try:
        # safetensors' own save_file makes files that only their owner may read.
        part.write_bytes(save({"latents": latents.contiguous().cpu()}, metadata=metadata))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
