"""Saved latents to a video, with nothing but the VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from paradit.config.errors import InputError
from paradit.config.requests import ResolvedRequest
from paradit.engine.devices import device_of
from paradit.engine.events import Finished
from paradit.engine.job import Job
from paradit.engine.keep import keep
from paradit.memory import peak_memory_bytes, total_memory_bytes
from paradit.models.spec import FP32_BYTES, ModelSpec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.scheduling.fitting import SURELY
from paradit.scheduling.memory import fitting_tile
from paradit.stages.decode import decode


def check_memory(request: ResolvedRequest, spec: ModelSpec) -> str | None:
    """A warning where a resolved request's decode may need more memory than there is, by the estimate.

    Raises InputError where it surely does (`scheduling.fitting.SURELY`).
    """
    total = total_memory_bytes(device_of(0))

    def needed(tiled: ResolvedRequest) -> int:
        size = tiled.num_frames, tiled.height, tiled.width
        return spec.rank_memory_bytes(*size, FP32_BYTES, ("decode",), tile=tiled.vae_tile)["peak"]

    if needed(request) <= total:
        return None
    tile = fitting_tile(request, spec, lambda tiled: needed(tiled) <= total)
    said = (
        f"the decode of {request.width}x{request.height} needs about {needed(request) / 1e9:.1f} GB of "
        f"memory, and there are {total / 1e9:.1f}"
    )
    said += f": it fits with --vae-tile {tile}" if tile else ""
    if needed(request) > SURELY * total:
        raise InputError(said)
    return said


def decode_saved(
    latents: Path,
    job: Job,
    spec: ModelSpec,
    report: Progress,
    *,
    overwrite: bool,
    about: dict[str, Any] | None = None,
) -> None:
    """Decode the tensor `latents` of a checked safetensors file into the job's output.

    about: what the latents were made from, for the video's metadata.
    """
    model = load(spec, job.request.dtype, report, stages=("decode",))
    tensor = load_file(latents)["latents"].to(model.device)
    decode(
        model,
        tensor,
        job.request.vae_tile,
        report,
        lambda frames: keep(job, spec, tensor, frames, overwrite=overwrite, about=about),
    )
    memory = peak_memory_bytes(model.device)
    result = {
        **job.about(spec),
        "latents_path": str(latents),
        "seconds": {name: round(took, 4) for name, took in report.seconds.items()},
        "device": model.device.type,
        "peak_memory_bytes": memory,
        "peak_memory_bytes_by_rank": [memory],
    }
    report.emit(Finished(job=job.index, result=result))
