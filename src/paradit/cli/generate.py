"""`paradit generate`: check everything, then load the model once and make the videos."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from paradit.cli.jobs import Job, Options, make_jobs, output_folder, read_prompts
from paradit.cli.progress import Reporter
from paradit.models.folder import download_weights, find_model
from paradit.models.spec import ModelSpec, read_spec
from paradit.requests import warnings_for
from paradit.video.writer import open_video, temporary_name

if TYPE_CHECKING:
    import torch

BYTES = {"bf16": 2, "fp32": 4}


def generate(options: Options, report: Reporter) -> None:
    """Make the videos that `options` ask for, and tell `report`.

    Raises `InputError` for whatever cannot be had, before torch is imported and any file is made.
    """
    prompts = read_prompts(options)
    folder = find_model(options.model)
    spec = read_spec(folder)
    jobs = make_jobs(options, prompts, spec)
    for warning in dict.fromkeys(line for job in jobs for line in warnings_for(job.request, spec)):
        report.warn(warning)
    if options.dry_run:
        for job in jobs:
            report.plan(plan(job, spec))
        return
    _check_memory(jobs, spec, report)
    download_weights(options.model, folder)
    _run(jobs, spec, options, report)


def _check_memory(jobs: list[Job], spec: ModelSpec, report: Reporter) -> None:
    # Imports torch, to know the device: after all other checks, and before weights are downloaded.
    from paradit.text_to_video import check_memory

    for warning in dict.fromkeys(check_memory(spec, job.request) for job in jobs):
        if warning:
            report.warn(warning)


def plan(job: Job, spec: ModelSpec) -> dict[str, Any]:
    """What a job would do and need, from the spec alone."""
    request, transformer = job.request, spec.transformers[0]
    assert request.num_frames and request.height and request.width and request.guidance_scale
    size = (request.num_frames, request.height, request.width)
    tokens = spec.tokens(*size)
    dtype = request.dtype or "fp32"  # the default on a CPU, and the larger one
    branches = 2 if request.guidance_scale > 1 else 1
    step = branches * transformer.flops(tokens, spec.text_length)
    steps = request.num_inference_steps or 0
    text = branches * sum(expert.context_flops(spec.text_length) for expert in spec.transformers)
    return {
        **_about(job, spec),
        "pipeline_class": spec.pipeline_class,
        "model_folder": str(spec.folder),
        "latent_shape": list(spec.vae.latent_shape(*size)),
        "tokens": tokens,
        "step_flops": step,
        "flops": step * steps + text,
        "dtype": dtype,
        "memory_bytes": spec.memory_bytes(*size, BYTES[dtype]),
    }


def _run(jobs: list[Job], spec: ModelSpec, options: Options, report: Reporter) -> None:
    from paradit.text_to_video import load, text_to_video

    model = load(spec, options.dtype, report)
    for index, job in enumerate(jobs):
        report.request(index, len(jobs), job.request.prompt)
        before = dict(report.seconds) if index else {}  # loading counts for the first
        video = text_to_video(model, job.request, report)
        if job.latents is not None:
            # Before the decode, which may run out of memory: the costly part is then safe.
            _save_latents(job, spec, video.latents)
        folder = output_folder(options)
        if folder is not None:
            folder.mkdir(exist_ok=True)
        _write(job, video, options.overwrite)
        seconds = {name: total - before.get(name, 0.0) for name, total in report.seconds.items()}
        report.result({
            **_about(job, spec),
            "latents_path": str(job.latents) if job.latents else None,
            "seconds": {name: round(took, 4) for name, took in seconds.items() if took > 0},
            **_peak_memory(model.device),
        })  # fmt: skip


def _write(job: Job, video: Any, overwrite: bool) -> None:
    request = job.request
    assert request.width and request.height and request.fps
    with (
        closing(video.frames()) as frames,
        open_video(job.output, request.width, request.height, request.fps, overwrite=overwrite) as file,
    ):
        for frame in frames:
            file.write(frame)


def _save_latents(job: Job, spec: ModelSpec, latents: torch.Tensor) -> None:
    """Save `[1, C, F, h, w]` under the key `latents`, whole or not at all."""
    from safetensors.torch import save

    assert job.latents is not None
    part = temporary_name(job.latents)
    metadata = {key: str(value) for key, value in _about(job, spec).items() if value is not None}
    try:
        # safetensors' own save_file makes files that only their owner may read.
        part.write_bytes(save({"latents": latents.contiguous().cpu()}, metadata=metadata))
        part.replace(job.latents)
    finally:
        part.unlink(missing_ok=True)


def _about(job: Job, spec: ModelSpec) -> dict[str, Any]:
    request = job.request
    return {
        "path": job.output,
        "model": spec.name,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "fps": request.fps,
        "dtype": request.dtype,
    }


def _peak_memory(device: torch.device) -> dict[str, int]:
    import torch

    from paradit.memory import peak_memory_bytes

    memory = {"peak_memory_bytes": peak_memory_bytes(torch.device("cpu"))}
    if device.type == "cuda":
        memory["peak_gpu_memory_bytes"] = peak_memory_bytes(device)
    return memory
