"""`paradit generate`: check everything, then load the model once and make the videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paradit.cli.jobs import Options, make_jobs, read_prompts
from paradit.cli.progress import Reporter
from paradit.distributed.shares import Shares
from paradit.engine.job import Job
from paradit.engine.run import check_devices, ranks_of_torchrun, run
from paradit.errors import InputError
from paradit.models.folder import download_weights, find_model
from paradit.models.spec import ModelSpec, read_spec
from paradit.placement import Placement, read_fields, read_groups
from paradit.requests import warnings_for
from paradit.scheduling.stages import STAGES

BYTES = {"bf16": 2, "fp32": 4}


def generate(options: Options, report: Reporter) -> int:
    """Make the videos that `options` ask for, and tell `report`. Gives the exit code: 1 where one has failed.

    Raises `InputError` for whatever cannot be had, before torch is imported and any file is made.
    """
    prompts = read_prompts(options)
    folder = find_model(options.model)
    spec = read_spec(folder)
    jobs = make_jobs(options, prompts, spec)
    placement = _placement(options)
    for job in jobs:
        placement.check(job.request, spec)
    jobs = [replace(job, request=placement.tiled(job.request, spec)) for job in jobs]
    for warning in dict.fromkeys(line for job in jobs for line in warnings_for(job.request, spec)):
        report.warn(warning)
    if options.dry_run:
        for job in jobs:
            report.plan(plan(job, spec, placement))
        return 0
    check_devices(placement, options.dtype)
    _check_memory(jobs, spec, report)
    download_weights(options.model, folder)
    run(jobs, spec, placement, report, overwrite=options.overwrite)
    return int(report.failures > 0)


def _placement(options: Options) -> Placement:
    there = ranks_of_torchrun()
    if there and options.ranks not in (None, there):
        raise InputError(f"ranks is {options.ranks}, and torchrun started {there}: leave --ranks out")
    chosen = {
        "decode_degree": options.decode_degree,
        "cfg_degree": options.cfg_degree,
        "attention": options.attention,
        "chunks": options.chunks,
        "interleave": options.interleave,
        "ring_degree": options.ring_degree,
        "mesh": options.mesh,
        "kernel": options.kernel,
        "compile": options.compile,
        **_read_placement(options.placement),
    }
    groups = [ranks for stage in STAGES for ranks in chosen.get(stage) or ()]
    if there and groups:
        raise InputError(
            "stages have ranks of their own only with --ranks: leave torchrun, or --placement, out"
        )
    ranks = options.ranks if options.ranks is not None else chosen.get("ranks")
    if ranks is None:
        ranks = there or max(groups, default=0) + 1
    return Placement(**{**chosen, "ranks": ranks})


def _read_placement(placement: str | None) -> dict[str, Any]:
    """The fields that `--placement` gives: in a file, or as the ranks of stages."""
    if placement is None:
        return {}
    if not placement.endswith(".json"):
        return dict(read_groups(placement))
    try:
        return read_fields(Path(placement).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"placement file {placement!r} cannot be read: {error}") from None


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
        "memory_bytes": spec.memory_bytes(*size, BYTES[dtype], request.vae_tile),
        "ranks": placement.ranks,
        "cfg_degree": placement.cfg_degree,
        "shares": _shares(placement, tokens, transformer.num_attention_heads),
    }


def _shares(placement: Placement, tokens: int, num_heads: int) -> list[dict[str, Any]]:
    """Each rank's stages; tokens held and attention rows computed, for each branch that it computes."""
    shares = Shares.equal(tokens, num_heads, placement.branch_ranks)
    by_rank = list(zip(shares.tokens, shares.work, strict=True)) * placement.cfg_degree
    found = []
    for rank in range(placement.ranks):
        share: dict[str, Any] = {"rank": rank, "stages": placement.stages_of(rank)}
        if rank in placement.denoise_ranks:
            number = placement.denoise_ranks.index(rank)
            held, rows = by_rank[number]
            share |= {"branch": number // placement.branch_ranks, "tokens": held, "rows": rows}
        found.append(share)
    return found
