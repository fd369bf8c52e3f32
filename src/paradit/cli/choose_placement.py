"""Choice of a run's placement (which ranks do which stages): by options, by the planner or by a warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.reporters import Reporter
from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.options import named, read_values
from paradit.config.placement import Placement, placement_fields
from paradit.config.placement_text import read_fields, read_groups
from paradit.engine.events import Placed
from paradit.engine.job import Job
from paradit.engine.planned_placement import Open, planned, planned_form
from paradit.engine.this_machine import calibrated_cluster
from paradit.files import read_text
from paradit.launcher_environment import launched
from paradit.models.spec import ModelSpec
from paradit.scheduling.stages import PLACED

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """Placement of a run (which ranks do which stages), with the reasons for it.

    It is decided as far as that is possible before anything is loaded.
    """

    placement: Placement
    automatic: bool = False
    """Whether the placement is still to be chosen, from the times of a short warm-up."""
    form: str = ""
    """Reason for the attention form that the planner chose, with the times of all forms that it compared.

    Empty if the planner did not choose one.
    """

    why: tuple[str, ...] = ()
    """Lines that give the reasons for what the planner chose in the placement, except the attention form."""


def asked_placement(options: GenerateOptions) -> Placement:
    """Return the placement that the options, or the file that they name, ask for. Raises InputError.

    Options override what the file says. If the placement is still to be chosen, all ranks of the returned
    placement run all stages.
    """
    here = launched()
    there = here.ranks if here else None
    if here and options.ranks not in (None, there):
        raise InputError(
            f"ranks is {options.ranks}, but torchrun started {there}: leave --ranks out, or {here.unset}"
        )
    chosen = _read_placement(options.placement)
    chosen |= {name: value for name, value in options.others.items() if name in placement_fields()}
    chosen = read_values(placement_fields(), chosen)
    groups = [ranks for stage in PLACED for ranks in chosen.get(stage) or ()]
    automatic, replicas = options.placement == AUTO, chosen.get("replicas", 1)
    if there and (groups or automatic or replicas > 1):
        raise InputError(
            "--placement and --replicas do not work under torchrun: use --ranks instead of torchrun, or "
            "leave them out"
        )
    if automatic and replicas > 1:
        raise InputError("--placement auto chooses the replicas: leave --replicas out")
    ranks = options.ranks if options.ranks is not None else chosen.get("ranks")
    if ranks is None and automatic:
        # Imports torch, so only if GPUs must be counted.
        from paradit.devices import visible_ranks

        ranks = visible_ranks()
    if ranks is None:  # as many as the stages name, or one for each replica
        ranks = there or max(max(groups, default=0) + 1, replicas)
    return Placement.of(**{**chosen, "ranks": ranks})


def arrange(
    options: GenerateOptions, jobs: list[Job], spec: ModelSpec, base: Placement, report: Reporter
) -> Arranged:
    """Choose the placement (which ranks do which stages) of a run; return it with the reasons for the choice.

    base: placement that the user asked for.

    The planner takes part only on a calibrated machine, whose speeds have been measured. It chooses the whole
    placement with `--placement auto`, and for long videos if the user asked for no placement. Otherwise it
    chooses only the attention form (such as Ulysses or ring) and its options, as far as the user left them
    open. Under torchrun all stages are on the same ranks. There the planner is used only if all ranks are on
    this machine, so that all plan from the same calibration file.
    """
    for job in jobs:
        check_placement(base, job.request, spec)
    automatic = options.placement == AUTO and base.ranks > 1
    method = method_of(jobs[0].request)
    said_nothing = options.placement is None and base.ranks > 1 and _is_plain(base)
    here = launched()
    is_planned = automatic or (method.planned_unasked and said_nothing and not here)
    # Ranks on other machines would read other files, and plan differently.
    cluster = calibrated_cluster(base.ranks) if not here or here.ranks == here.local_ranks else None
    choice = None
    if cluster is not None and is_planned:
        degree = options.others.get("cfg_degree")
        degrees = (1, 2) if degree is None else (int(degree),)
        left = Open(cfg_degrees=degrees, replicas=automatic, coprocess="coprocess" not in options.others)
        choice = planned(jobs, spec, base, cluster, left)
        if choice is not None:
            report.emit(
                Placed(placement=choice.placement.flat(), reason=choice.reason, seconds=choice.seconds)
            )
    elif cluster is not None:
        choice = planned_form(jobs, spec, base, cluster)
    if choice is not None:
        return Arranged(placement=choice.placement, form=choice.form, why=choice.why)
    by_rule = method.by_rule(base, jobs[0].request, spec) if automatic else None
    if by_rule is not None:
        report.emit(Placed(placement=base.flat(), reason=by_rule, seconds={}))
        return Arranged(placement=base)
    return Arranged(placement=base, automatic=automatic)


def _is_plain(base: Placement) -> bool:
    """Return whether a placement sets nothing but guidance branches, attention backend and compiling."""
    return base == Placement(
        ranks=base.ranks,
        cfg_degree=base.cfg_degree,
        attention_backend=base.attention_backend,
        compile=base.compile,
    )


def _read_placement(placement: str | None) -> dict[str, Any]:
    """Return the fields that the option `--placement` sets, by a file or by the ranks of each stage."""
    if placement in (None, AUTO):
        return {}
    if not placement.endswith(".json"):
        return dict(read_groups(placement))
    try:
        with named(f"placement file {placement!r}"):
            return read_fields(read_text(Path(placement)))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"placement file {placement!r} cannot be read: {error}") from None
