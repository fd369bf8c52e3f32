"""Check of a model's scheduler before weights are loaded.

Torch-free if the scheduler is that of a published model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.methods.method import method_of
from paradit.config.options import Option, decode_known
from paradit.config.requests import ResolvedRequest
from paradit.models.flow_schedulers import FLOW_SCHEDULERS
from paradit.models.folder_json import read_index, read_json
from paradit.models.known_schedulers import is_known
from paradit.models.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Numbers in a scheduler's configuration that determine its memory use, each with an upper limit."""

    num_train_timesteps: Annotated[int, Option(least=1, most=10**5)] = 1000
    solver_order: Annotated[int, Option(least=1, most=10)] = 2


def check_scheduler(spec: ModelSpec, request: ResolvedRequest) -> None:
    """Refuse a model whose scheduler cannot be used for a resolved request. Raises InputError.

    Imports torch and diffusers only to try a scheduler that is not like a published model's.
    """
    _check_evaluations(spec, request)
    path = spec.folder / "scheduler" / "scheduler_config.json"
    if not path.exists():  # a published model, known only by its configurations
        return
    name = str(read_index(spec.folder)["scheduler"][1])
    config = read_json(path)
    decode_known(_Config, config, str(path))
    if request.scheduler or is_known(name, config):
        return
    from paradit.models.common.schedulers import schedule
    from paradit.sampling.scheduler_trial import try_scheduler

    try_scheduler(
        spec.folder,
        schedule(spec.pipeline_class),
        request,
        spec.vae.z_dim,
        in_blocks=method_of(request).solver_by_block,
    )


def _check_evaluations(spec: ModelSpec, request: ResolvedRequest) -> None:
    """Refuse a named scheduler that evaluates the model several times per step, for frame blocks."""
    if not request.scheduler or not method_of(request).solver_by_block:
        return
    scheduler = request.flow_scheduler(spec)
    if scheduler is not None and scheduler.evaluations > 1:
        once = ", ".join(name for name, one in FLOW_SCHEDULERS.items() if one.evaluations == 1)
        raise InputError(
            f"scheduler {request.scheduler} evaluates the model {scheduler.evaluations} times in a step, but "
            f"frame blocks need one evaluation per step: use method full, or one of {once}"
        )
