"""Loading of diffusers' schedulers from a model's folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import diffusers
import torch

from paradit.config.plugins import imported
from paradit.config.requests import ResolvedRequest
from paradit.models.flow_schedulers import find_scheduler
from paradit.models.folder_json import read_index, read_json
from paradit.models.protocol import Scheduler
from paradit.models.registry import family


class Schedule(Protocol):
    """Interface of a function that sets a scheduler's steps as a pipeline does."""

    def __call__(
        self,
        scheduler: Scheduler,
        num_inference_steps: int,
        device: torch.device,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set the steps by their number, or by the noise levels `sigmas` of a request's list.

        May raise any error that the scheduler raises.
        """


def scheduler_name(folder: Path) -> str:
    """Return the class name of a model folder's scheduler, as its model_index.json states it."""
    return str(read_index(folder)["scheduler"][1])


def scheduler_for(request: ResolvedRequest, own: Scheduler) -> Scheduler:
    """Return a new scheduler for a request, whose steps are not set yet.

    own: scheduler in the model's folder. It is copied if the request asks for no other class or shift. A
    scheduler of another class gets the shift of `own`, if the request asks for no other. Raises ValueError if
    `own` has no shift to change, and any error that the class raises for its configuration.
    """
    named = find_scheduler(request.scheduler) if request.scheduler else None
    key = next((key for key in ("flow_shift", "shift") if key in own.config), None)
    if named and named.class_name != type(own).__name__:
        shift = own.config[key] if request.shift is None and key else request.shift
        made: Scheduler = getattr(diffusers, named.class_name)(
            **named.config, **({} if shift is None else {named.shift: shift})
        )
        return made
    if request.shift is None:
        return copy.deepcopy(own)
    if key is None:
        raise ValueError("it has no timestep shift")
    changed: Scheduler = cast(Any, type(own)).from_config({**own.config, key: request.shift})
    return changed


def load_scheduler(folder: Path) -> Scheduler:
    """Load a model folder's scheduler, as the pipeline's `from_pretrained` does.

    Raises ValueError for a class that diffusers does not have, and any error that the class raises for its
    configuration.
    """
    scheduler_class = getattr(diffusers, scheduler_name(folder), None)
    if scheduler_class is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no such class")
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    loaded: Scheduler = scheduler_class.from_config(config)
    return loaded


def schedule(pipeline_class: str) -> Schedule:
    """Return the function that sets a scheduler's steps as a given diffusers pipeline class does."""
    return cast("Schedule", imported(f"{family(pipeline_class).model}.schedule"))
