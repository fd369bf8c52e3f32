"""Command `paradit generate`: check all options, then load the model once and make the videos."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from paradit.cli.choose_placement import Arranged, arrange, asked_placement
from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.jobs import make_jobs, read_prompts
from paradit.cli.reporters import Reporter, make_reporter
from paradit.cli.run_reasons import explain
from paradit.cli.signals import stop
from paradit.cli.text import inputs_text, steps_text
from paradit.cli.trace import check_trace
from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.options import declared, read_values
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, frames_at_once, latent_shape
from paradit.distributed.shares import Shares
from paradit.engine.admission import admit
from paradit.engine.events import Explained, Placed, Planned
from paradit.engine.job import Job, Run
from paradit.engine.reserve import files_reserved
from paradit.engine.run import check_devices, make
from paradit.engine.run_folder import RunFolder
from paradit.launcher_environment import check_meeting_point, is_first_rank, launched
from paradit.models.find_lora import download_loras, with_loras
from paradit.models.folder import download_weights, find_spec
from paradit.models.identity import model_hash
from paradit.models.spec import ModelSpec
from paradit.models.warnings import warnings_for
from paradit.scheduler_check import check_scheduler
from paradit.trace.merge import collected

BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Jobs of a run, and its placement (which ranks do which stages).

    Both are known as far as is possible before anything is loaded.
    """

    spec: ModelSpec
    asked: Placement
    """Placement that the user's options ask for, before anything in it is chosen automatically."""
    arranged: Arranged
    as_asked: list[Job]
    jobs: list[Job]
    """Jobs to carry out: `as_asked`, with a tile size for the VAE added if ranks share the decode."""


def generate(options: GenerateOptions) -> int:
    """Make the videos that the options ask for, and return the exit code: 1 if a video has failed.

    Raises InputError for anything that cannot be done, before any file is made.
    """
    here = launched()
    # The first rank reports for all. But a dry run under another launcher than torchrun may be one process
    # whose variables were left over, so it must not be silent.
    silent = here is not None and here.rank > 0 and (here.by_torchrun or not options.dry_run)
    with make_reporter(options.json, silent=silent) as report:
        checked = _check(options, report)
        spec, jobs, placement = checked.spec, checked.jobs, checked.arranged.placement
        if options.dry_run:
            _tell(options, checked, report)
            return 0
        if here:
            check_meeting_point(here)
        check_devices(placement, jobs[0].request.dtype)
        spec = download_loras(spec)
        _check_memory(replace(checked, spec=spec), report)
        with files_reserved(jobs, options.trace, overwrite=options.overwrite):
            download_weights(options.model, spec.folder, options.variant)
            if checked.arranged.automatic:
                placement = _choice(jobs, spec, placement, report)
            run = _run(options, jobs, spec, placement)
            folder = RunFolder.create(run) if is_first_rank() else None
            run = folder.take_inputs(run) if folder else run
            with collected(options.trace, layers=options.trace_layers) as tracing:
                make(run, spec, folder, report, stop, tracing=tracing)
        return int(report.failures > 0)


def _check(options: GenerateOptions, report: Reporter) -> Checked:
    """Return the jobs and their placement after all checks, and report warnings and reasons.

    Raises InputError.
    """
    prompts = read_prompts(options)
    # The run itself is created only at the end; these two of its values are options, so check them now.
    kept = {"checkpoint_steps": options.checkpoint_steps, "hang_limit": options.hang_limit}
    read_values(declared(Run), kept)
    loads = not options.dry_run
    spec = find_spec(options.model, revision=options.revision, variant=options.variant, loads=loads)
    spec = with_loras(spec, options.lora or ())
    asked = asked_placement(options)
    as_asked = make_jobs(options, prompts, spec, asked)
    _check_shared(as_asked)
    if not options.seed.strip().isdecimal():
        report.emit(Explained(line=f"seed {as_asked[0].request.seed}"))
    check_trace(options)
    arranged = arrange(options, as_asked, spec, asked, report)
    placement = arranged.placement
    for job in as_asked:
        check_placement(placement, job.request, spec)
    _check_replicas(placement, len(as_asked))
    _check_endless(as_asked, placement)
    jobs = [replace(job, request=placement.tiled(job.request, spec)) for job in as_asked]
    for warning in dict.fromkeys(line for job in jobs for line in warnings_for(job.request, spec, placement)):
        report.warn(warning)
    if options.explain:
        lines = (line for job in jobs for line in explain(options, job.request, arranged, spec))
        for line in dict.fromkeys(lines):
            report.emit(Explained(line=line))
    for job in jobs:
        check_scheduler(spec, job.request)
    return Checked(spec=spec, asked=asked, arranged=arranged, as_asked=as_asked, jobs=jobs)


def _tell(options: GenerateOptions, checked: Checked, report: Reporter) -> None:
    """Print what a run would make, for `--dry-run`."""
    spec, jobs, placement = checked.spec, checked.jobs, checked.arranged.placement
    if checked.arranged.automatic:
        placement = _known_choice(jobs, spec, placement, report)
    for job in jobs:
        if os.path.lexists(job.output) and not options.overwrite:
            report.warn(f"output {job.output!r} exists: to run, name another file, or use --overwrite")
        report.emit(Planned(plan=plan(job, spec, placement)))


def _run(options: GenerateOptions, jobs: list[Job], spec: ModelSpec, placement: Placement) -> Run:
    return Run(
        model=options.model,
        model_folder=str(spec.folder.absolute()),
        model_hash=model_hash(spec.folder, options.variant),
        revision=options.revision,
        variant=options.variant,
        loras=spec.loras,
        jobs=tuple(jobs),
        placement=placement,
        overwrite=options.overwrite,
        checkpoint_steps=options.checkpoint_steps,
        hang_limit=options.hang_limit,
        metadata=not options.no_metadata,
    )


def _check_shared(jobs: list[Job]) -> None:
    """Refuse requests that cannot share the weights and ranks of one run. Raises InputError."""
    for name in ("dtype", "method"):
        found = list(dict.fromkeys(getattr(job.request, name) for job in jobs))
        if len(found) > 1:
            got = " and ".join(str(value or "the usual one") for value in found[:2])
            raise InputError(f"all requests of a run must have the same {name}, got {got}: use several runs")


def _check_endless(jobs: list[Job], placement: Placement) -> None:
    if not any(job.request.endless for job in jobs):
        return
    if launched():
        raise InputError("a video of duration inf cannot be stopped under torchrun: use --ranks")
    if placement.decode_degree > 1:
        raise InputError("a video of duration inf is decoded by one rank: leave --decode-degree out")


def _check_replicas(placement: Placement, count: int) -> None:
    if placement.replicas > count:
        raise InputError(
            f"replicas must be at most {count}, because each makes videos of its own, got "
            f"{placement.replicas}"
        )


def _choice(jobs: list[Job], spec: ModelSpec, base: Placement, report: Reporter) -> Placement:
    """Return the placement that `--placement auto` chooses by the stages' times.

    The times are those of an earlier warm-up; if none are stored, they are measured now.
    """
    from paradit.engine.auto import choose_placement, known_costs, measure_costs

    costs = known_costs(jobs, spec, base) or measure_costs(jobs, spec, base, report)
    choice = choose_placement(jobs, spec, base, costs)
    report.emit(Placed(placement=choice.placement.flat(), reason=choice.reason, seconds=choice.seconds))
    return choice.placement


def _known_choice(jobs: list[Job], spec: ModelSpec, base: Placement, report: Reporter) -> Placement:
    """Return the placement that `--placement auto` would choose, for a dry run, which measures nothing.

    If nothing was measured earlier, all stages are on the same ranks.
    """
    from paradit.engine.auto import known_costs

    if known_costs(jobs, spec, base) is not None:
        return _choice(jobs, spec, base, report)
    reason = "together; the run itself will choose after a warm-up that measures the stages"
    report.emit(Placed(placement=base.flat(), reason=reason, seconds={}))
    return base


def _check_memory(checked: Checked, report: Reporter) -> None:
    spec, asked, placement = checked.spec, checked.asked, checked.arranged.placement
    if checked.arranged.automatic:
        from paradit.engine.auto import most_affordable

        placement = most_affordable(checked.as_asked, spec, placement)
    # The user did not ask for the planned attention form, and a placement that fits may need another.
    as_asked = replace(
        placement, attention=asked.attention, options=asked.options, interleave=asked.interleave
    )
    admit(checked.as_asked, spec, as_asked, report.warn)


def plan(job: Job, spec: ModelSpec, placement: Placement) -> dict[str, Any]:
    """Return a job's tokens, FLOPs, memory and use of ranks as plain values, for a dry run.

    They follow from the model's configuration; no weights are loaded.
    """
    request, method, transformer = job.request, method_of(job.request), spec.transformers[0]
    size = (frames_at_once(request, spec), request.height, request.width)
    tokens = spec.tokens(*size)
    dtype = request.dtype or "fp32"  # the default on a CPU, and the larger one
    once, branches = transformer.flops(tokens, spec.text_length), request.branches(spec)
    text = sum(
        number * expert.context_flops(spec.text_length)
        for number, expert in zip(branches, spec.transformers, strict=True)
    )
    return {
        **job.about(spec),
        "pipeline_class": spec.pipeline_class,
        "model_folder": str(spec.folder),
        "inputs": inputs_text(request),
        "steps": steps_text(request, spec),
        "evaluations_by_expert": request.evaluations(spec),
        "latent_shape": list(latent_shape(request, spec)),
        "tokens": tokens,
        "step_flops": max(branches) * once,
        "flops": once * request.forward_passes(spec) * request.num_blocks(spec) + text,
        "dtype": dtype,
        "memory_bytes": method.memory_by_rank(Placement(), request, spec, BYTES[dtype])[0],
        "memory_bytes_by_rank": method.memory_by_rank(placement, request, spec, BYTES[dtype]),
        "ranks": placement.ranks,
        "replicas": placement.replicas,
        "cfg_degree": placement.cfg_degree,
        "pipeline_degree": method.grid(placement, request, spec).num_slices,
        "shares": _shares(placement, request, spec, tokens),
        **method.dry_run(placement, request, spec),
    }


def _shares(
    placement: Placement, request: ResolvedRequest, spec: ModelSpec, tokens: int
) -> list[dict[str, Any]]:
    """Return, for a dry run, each rank's stages, layers, tokens and attention query rows.

    Tokens and rows are those per guidance branch. Layers are divided by their operations; a run measures
    their times.
    """
    method, transformer = method_of(request), spec.transformers[0]
    grid = method.grid(placement, request, spec)
    shares = Shares.equal(tokens, transformer.num_attention_heads, grid.sharers)
    layers = method.layers(placement, request, spec)
    found = []
    for rank in range(placement.ranks):
        share: dict[str, Any] = {"rank": rank, "stages": placement.stages_of(rank)}
        within = rank % placement.replica_ranks
        if within in placement.denoise_ranks:
            number = placement.denoise_ranks.index(within)
            place = grid.place(number)
            share["branch"] = grid.branch(number)
            share |= {"tokens": shares.tokens[place], "rows": shares.work[place]}
            if grid.num_slices > 1:
                share["layers"] = len(layers[grid.slice_of(number)])
        found.append(share)
    return found
