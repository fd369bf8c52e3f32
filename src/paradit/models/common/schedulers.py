"""Diffusers' schedulers: loaded from a model's folder, and set to their steps as its pipeline sets them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from paradit.models.folder_json import read_json

Schedule = Callable[[Any, int, torch.device], None]
"""(scheduler, num_inference_steps, device): sets a scheduler to its steps; raises what it raises."""


def scheduler_name(folder: Path) -> str:
    """Return the class of a model folder's scheduler, which its model_index.json names."""
    return str(read_json(folder / "model_index.json")["scheduler"][1])


def load_scheduler(folder: Path) -> Any:
    """Load a model folder's scheduler, as the pipeline's `from_pretrained` does.

    Raises ValueError for a class that diffusers does not have, and what the class raises for its
    configuration.
    """
    scheduler_class = getattr(diffusers, scheduler_name(folder), None)
    if scheduler_class is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no such class")
    return scheduler_class.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))


def set_by_count(scheduler: Any, num_inference_steps: int, device: torch.device) -> None:
    """Set a scheduler to its steps as WanPipeline does: by their number alone."""
    scheduler.set_timesteps(num_inference_steps, device=device)
    scheduler.set_begin_index(0)
    if not hasattr(scheduler, "sigmas"):
        raise AttributeError("it has no sigmas, which WanPipeline reads in every step")


def set_by_sigmas(scheduler: Any, num_inference_steps: int, device: torch.device) -> None:
    """Set a scheduler to its steps as HunyuanVideoPipeline does: by sigmas that fall evenly from 1."""
    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise TypeError("it takes no sigmas, which HunyuanVideoPipeline hands over")
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1], device=device)
    scheduler.set_begin_index(0)
