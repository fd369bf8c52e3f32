"""`paradit generate`: check everything, then load the model once and make the videos."""

from __future__ import annotations

from typing import Any

from paradit.cli.jobs import Options, make_jobs, read_prompts
from paradit.cli.progress import Reporter
from paradit.distributed.shares import Shares
from paradit.engine.job import Job
from paradit.engine.run import check_devices, ranks_of_torchrun, run
from paradit.errors import InputError
from paradit.models.folder import download_weights, find_model
from paradit.models.spec import ModelSpec, read_spec
from paradit.placement import Placement
from paradit.requests import warnings_for

BYTES = {"bf16": 2, "fp32": 4}


def generate(options: Options, report: Reporter) -> None:
    """Make the videos that `options` ask for, and tell `report`.

    Raises `InputError` for whatever cannot be had, before torch is imported and any file is made.
    """
    prompts = read_prompts(options)
    folder = find_model(options.model)
    spec = read_spec(folder)
    jobs = make_jobs(options, prompts, spec)
    placement = _placement(options)
    for job in jobs:
        placement.check(job.request, spec)
    for warning in dict.fromkeys(line for job in jobs for line in warnings_for(job.request, spec)):
        report.warn(warning)
    if options.dry_run:
        for job in jobs:
            report.plan(plan(job, spec, placement))
        return
    check_devices(placement, options.dtype)
    _check_memory(jobs, spec, report)
    download_weights(options.model, folder)
    run(jobs, spec, placement, report, overwrite=options.overwrite)


def _placement(options: Options) -> Placement:
    there = ranks_of_torchrun()
    if there and options.ranks not in (None, there):
        raise InputError(f"ranks is {options.ranks}, and torchrun started {there}: leave --ranks out")
    return Placement(
        ranks=options.ranks if options.ranks is not None else there or 1,
        cfg_degree=options.cfg_degree,
        attention=options.attention,
        chunks=options.chunks,
        interleave=options.interleave,
        ring_degree=options.ring_degree,
        mesh=options.mesh,
        kernel=options.kernel,
        compile=options.compile,
    )


def _check_memory(jobs: list[Job], spec: ModelSpec, report: Reporter) -> None:
    # Imports torch, to know the device: after all other checks, and before weights are downloaded.
    from paradit.text_to_video import check_memory

    for warning in dict.fromkeys(check_memory(spec, job.request) for job in jobs):
        if warning:
            report.warn(warning)


def plan(job: Job, spec: ModelSpec, placement: Placement) -> dict[str, Any]:
    """What a job would do and need, from the spec alone."""
    request, transformer = job.request, spec.transformers[0]
    assert request.num_frames and request.height and request.width and request.guidance_scale
    size = (request.num_frames, request.height, request.width)
    tokens = spec.tokens(*size)
    dtype = request.dtype or "fp32"  # the default on a CPU, and the larger one
    branches = spec.num_branches(request.guidance_scale)
    step = branches * transformer.flops(tokens, spec.text_length)
    steps = request.num_inference_steps or 0
    text = branches * sum(expert.context_flops(spec.text_length) for expert in spec.transformers)
    return {
        **job.about(spec),
        "pipeline_class": spec.pipeline_class,
        "model_folder": str(spec.folder),
        "latent_shape": list(spec.vae.latent_shape(*size)),
        "tokens": tokens,
        "step_flops": step,
        "flops": step * steps + text,
        "dtype": dtype,
        "memory_bytes": spec.memory_bytes(*size, BYTES[dtype]),
        "ranks": placement.ranks,
        "cfg_degree": placement.cfg_degree,
        "shares": _shares(placement, tokens, transformer.num_attention_heads),
    }


def _shares(placement: Placement, tokens: int, num_heads: int) -> list[dict[str, int]]:
    """Tokens held and attention rows computed, by rank, for each branch that the rank computes."""
    shares = Shares.equal(tokens, num_heads, placement.branch_ranks)
    by_rank = list(zip(shares.tokens, shares.work, strict=True)) * placement.cfg_degree
    return [
        {"rank": rank, "branch": rank // placement.branch_ranks, "tokens": held, "rows": rows}
        for rank, (held, rows) in enumerate(by_rank)
    ]
