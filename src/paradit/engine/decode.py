"""Saved latents to a video, with nothing but the VAE."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from paradit.engine.job import Job, Report
from paradit.engine.keep import keep
from paradit.memory import peak_memory_bytes
from paradit.models.spec import ModelSpec
from paradit.stages.decode import decode
from paradit.text_to_video import load


def decode_saved(latents: Path, job: Job, spec: ModelSpec, report: Report, *, overwrite: bool) -> None:
    """Decode the tensor `latents` of a checked safetensors file into the job's output."""
    model = load(spec, job.request.dtype, report, stages=("decode",))
    tensor = load_file(latents)["latents"].to(model.device)
    decode(
        model,
        tensor,
        job.request.vae_tile,
        report,
        lambda frames: keep(job, spec, tensor, frames, overwrite=overwrite),
    )
    memory = peak_memory_bytes(model.device)
    report.result({
        **job.about(spec),
        "latents_path": str(latents),
        "seconds": {name: round(took, 4) for name, took in report.seconds.items()},
        "device": model.device.type,
        "peak_memory_bytes": memory,
        "peak_memory_bytes_by_rank": [memory],
    })  # fmt: skip
