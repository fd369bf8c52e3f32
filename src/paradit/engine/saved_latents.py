"""Decode of saved latents to a video, for which only the weights of the VAE are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from paradit.device_memory import peak_memory_bytes
from paradit.engine.events import Finished
from paradit.engine.job import Job
from paradit.engine.output import write_output
from paradit.models.common.tensor_files import check_finite
from paradit.models.spec import ModelSpec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.stages.decode import decode


def decode_saved(
    latents: Path,
    job: Job,
    spec: ModelSpec,
    report: Progress,
    *,
    overwrite: bool,
    about: dict[str, Any] | None = None,
) -> None:
    """Decode the latents in a safetensors file, and write the job's video; its header was checked before.

    about: record of what the latents were made from, for the video's metadata; None: no metadata. Raises
    InputError if latents are not finite, and FloatingPointError if decoded frames are not.
    """
    tensor = load_file(latents)["latents"]
    check_finite(repr(str(latents)), "latents", tensor)
    model = load(spec, job.request.dtype, report, stages=("decode",))
    tensor = tensor.to(model.device)
    decode(
        model,
        tensor,
        job.request.vae_tile,
        report,
        lambda frames: write_output(job, spec, tensor, frames, overwrite=overwrite, about=about),
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
