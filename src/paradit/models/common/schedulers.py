"""Diffusers' schedulers, loaded from a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import diffusers
import torch

from paradit.config.registry import imported
from paradit.models.folder_json import read_index, read_json
from paradit.models.protocol import Scheduler
from paradit.models.registry import family


class LoadedScheduler(Scheduler, Protocol):
    """A diffusers scheduler, which need not be set to its steps yet."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """(num_inference_steps, *, sigmas, device, ...), of which each class takes some."""

    def set_begin_index(self, begin_index: int) -> None: ...


Schedule = Callable[[LoadedScheduler, int, torch.device], None]
"""(scheduler, num_inference_steps, device): sets a scheduler to its steps; raises what it raises."""


def scheduler_name(folder: Path) -> str:
    """Return the class of a model folder's scheduler, which its model_index.json names."""
    return str(read_index(folder)["scheduler"][1])


def load_scheduler(folder: Path) -> LoadedScheduler:
    """Load a model folder's scheduler, as the pipeline's `from_pretrained` does.

    Raises ValueError for a class that diffusers does not have, and what the class raises for its
    configuration.
    """
    scheduler_class = getattr(diffusers, scheduler_name(folder), None)
    if scheduler_class is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no such class")
    loaded: LoadedScheduler = scheduler_class.from_config(
        read_json(folder / "scheduler" / "scheduler_config.json")
    )
    return loaded


def schedule(pipeline_class: str) -> Schedule:
    """What sets a scheduler to its steps as a family's pipeline does."""
    return cast("Schedule", imported(f"{family(pipeline_class).model}.schedule"))
