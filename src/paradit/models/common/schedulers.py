"""Loading of diffusers' schedulers from a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import diffusers
import torch

from paradit.config.plugins import imported
from paradit.models.folder_json import read_index, read_json
from paradit.models.protocol import Scheduler
from paradit.models.registry import family

Schedule = Callable[[Scheduler, int, torch.device], None]
"""Type of a function (scheduler, num_inference_steps, device) that sets a scheduler's steps. It may raise any
error that the scheduler raises."""


def scheduler_name(folder: Path) -> str:
    """Return the class name of a model folder's scheduler, as its model_index.json states it."""
    return str(read_index(folder)["scheduler"][1])


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
