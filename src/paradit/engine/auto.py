"""Choice of a placement (which ranks do which stages) for `--placement auto`.

It is made by the planner, or by timing the stages once.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from paradit.config.errors import InputError, RankError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.options import decode, read_object
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.devices import visible_ranks
from paradit.engine.events import Placed
from paradit.engine.job import Job
from paradit.engine.launchers import new_launcher, threads_per_rank
from paradit.engine.planned_placement import Open, largest, planned
from paradit.engine.started_ranks import call_on_ranks, preloaded
from paradit.engine.this_machine import calibrated_cluster
from paradit.engine.warmup import measure
from paradit.memory_check import room_bytes
from paradit.models.spec import ModelSpec
from paradit.progress import Emit, Progress
from paradit.scheduling.balance import Choice, StageSeconds, affordable, choose
from paradit.tuning.remembered import Remembered

_LOG = logging.getLogger(__name__)


def decide(requests: list[ResolvedRequest], spec: ModelSpec, emit: Emit) -> Placement:
    """Return the fastest placement (which ranks do which stages) for these requests on all GPUs here.

    If this machine is calibrated, the planner chooses it. Otherwise the denoising method's own rule may
    choose it, without measuring. If the method has no such rule, a short warm-up times the stages, and the
    times are stored for later runs. A choice by the planner or the warm-up is emitted as an event `Placed`.
    """
    base = Placement(ranks=visible_ranks())
    if base.ranks == 1:
        return base
    jobs = [Job(request=request, output="", latents=None) for request in requests]
    cluster = calibrated_cluster(base.ranks)
    choice = planned(jobs, spec, base, cluster, Open()) if cluster is not None else None
    if choice is None and any(method_of(request).by_rule(base, request, spec) for request in requests):
        return base
    if choice is None:
        costs = known_costs(jobs, spec, base) or measure_costs(jobs, spec, base, Progress(emit))
        choice = choose_placement(jobs, spec, base, costs)
    emit(Placed(placement=choice.placement.flat(), reason=choice.reason, seconds=choice.seconds))
    return choice.placement


def choose_placement(jobs: list[Job], spec: ModelSpec, base: Placement, costs: StageSeconds) -> Choice:
    """Return the fastest placement (which ranks do which stages) for these jobs.

    base: placement in which all ranks run all stages; the result uses the same ranks. costs: measured times
    of the stages.
    """
    request = largest(jobs, spec)
    spare = partial(_spare_bytes, spec, request)
    return choose(base, len(jobs), request.steps_to_do, costs, spare)


def most_affordable(jobs: list[Job], spec: ModelSpec, base: Placement) -> Placement:
    """Return a placement (which ranks do which stages) that fits into memory.

    If no placement fits, returns the one that exceeds the memory least. base: placement in which all ranks
    run all stages; the result uses the same ranks.
    """
    first, *_ = affordable(base, len(jobs), partial(_spare_bytes, spec, largest(jobs, spec)))
    return first


def known_costs(jobs: list[Job], spec: ModelSpec, base: Placement) -> StageSeconds | None:
    """Return the stages' times that an earlier warm-up measured for jobs like these on this machine.

    Returns None if no such times are stored.
    """
    remembered = Remembered().find(_what(largest(jobs, spec), spec, base))
    with suppress(InputError):  # a damaged entry counts as none
        return decode(StageSeconds, read_object(remembered or "", "what is remembered"))
    return None


def measure_costs(jobs: list[Job], spec: ModelSpec, base: Placement, report: Progress) -> StageSeconds:
    """Time the stages of these jobs in a warm-up on new ranks, and store the times for later runs.

    The warm-up uses as many ranks as `base` has, ends them afterwards, and is reported as stage "warm-up".
    Raises RankError if a rank fails.
    """
    request = largest(jobs, spec)
    with report.stage("warm-up"):
        launcher, preload = new_launcher(), preloaded(spec)
        called = call_on_ranks(launcher, base.ranks, measure, spec, request, base, preload=preload)
    if called.failures:
        raise RankError("\n".join(f"rank {rank}: {why}" for rank, why in called.failures.items()))
    costs: StageSeconds = called.results[0]
    _LOG.info("warm-up: %s", costs)
    Remembered().keep(_what(request, spec, base), json.dumps(asdict(costs)))
    return costs


def _spare_bytes(spec: ModelSpec, request: ResolvedRequest, placement: Placement) -> int:
    """Return how many bytes of memory a placement leaves free on its fullest device.

    The number is negative if the placement needs too much memory. Raises InputError if the placement is not
    valid for the request.
    """
    check_placement(placement, request, spec)
    room = room_bytes(spec, request, placement)
    return room["total"] - room["peak"]


def _what(request: ResolvedRequest, spec: ModelSpec, base: Placement) -> str:
    """Return the key under which a warm-up's times are stored: a text of everything that they depend on."""
    texts = [w.parameters for w in spec.weights if w.component.startswith("text")]
    shape = (request.width, request.height, request.num_frames, request.num_branches(spec))
    inputs = [*texts, *(name for name in ("image", "last_image", "video") if getattr(request, name))]
    dtype, threads = request.dtype or "usual", threads_per_rank(base.ranks)
    return f"stages of {spec.transformers}, {spec.vae}, {inputs}, {shape}, {dtype}, {threads} threads, {base}"
