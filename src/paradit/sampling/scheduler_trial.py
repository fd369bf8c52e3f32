"""Trial run of a model's scheduler on tiny latents, before any weights are loaded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from paradit.config.errors import InputError
from paradit.config.requests import ResolvedRequest
from paradit.models.common.schedulers import Schedule, load_scheduler, scheduler_for, scheduler_name
from paradit.models.protocol import Scheduler
from paradit.sampling.block_state import restore_solver, solver_state
from paradit.sampling.noise import step_generator
from paradit.sampling.solver import solver_step
from paradit.sampling.solver_state import SolverState, restore, scheduler_state

_CPU = torch.device("cpu")
_INSTEAD = "use another one in the model's folder, such as FlowMatchEulerDiscreteScheduler"


def try_scheduler(
    folder: Path, schedule: Schedule, request: ResolvedRequest, channels: int, *, in_blocks: bool
) -> None:
    """Refuse a request's scheduler if it fails, or if its steps do not follow from the seed alone.

    Raises InputError. folder: the model's folder. schedule: function that sets the scheduler's steps as the
    model's pipeline does. request: the request, whose scheduler, shift and steps are used. channels: number
    of channels of the latents. in_blocks: whether the video is denoised in frame blocks; a scheduler that
    evaluates the model more than once per step is then refused too.

    Tiny latents are denoised twice: once without a break, and once with a new scheduler before each step,
    which gets the old scheduler's state as from a checkpoint. If the results differ, the scheduler draws
    noise from another source than the generator that it is given, or has state that a checkpoint does not
    save.
    """
    make, num_steps = partial(_made, folder, schedule, request), request.num_inference_steps
    about = f"the model's scheduler, {scheduler_name(folder)},"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluations = len(make().timesteps)
            at_once = _run(make, channels, lambda scheduler: scheduler)
            resumed = _run(make, channels, partial(_put_back, make, in_blocks=in_blocks))
    except Exception as error:  # each scheduler class raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{about} cannot be run: {reason}; {_INSTEAD}") from None
    # nan_to_num, because NaN is not equal to itself.
    if not torch.equal(at_once.nan_to_num(), resumed.nan_to_num()):
        raise InputError(f"{about} draws noise that does not depend on the seed alone; {_INSTEAD}")
    if in_blocks and evaluations != num_steps:
        raise InputError(
            f"{about} evaluates the model {evaluations} times in {num_steps} steps, but frame blocks need "
            "one evaluation per step: use method full"
        )


def _made(folder: Path, schedule: Schedule, request: ResolvedRequest) -> Scheduler:
    scheduler = scheduler_for(request, load_scheduler(folder))
    schedule(scheduler, request.num_inference_steps, _CPU, request.sigmas)
    return scheduler


def _run(make: Callable[[], Scheduler], channels: int, between: Callable[[Scheduler], Scheduler]) -> Tensor:
    """Take all denoising steps on tiny latents, with a made-up prediction, and return the resulting latents.

    make: function that returns a new scheduler. between: function that is called between two steps with the
    scheduler, and returns the scheduler to use from then on.
    """
    scheduler = make()
    latents = torch.linspace(-1, 1, channels * 8).view(1, channels, 2, 2, 2)
    for step, timestep in enumerate(scheduler.timesteps):
        if step:
            scheduler = between(scheduler)
        latents = solver_step(scheduler, 0.5 * latents + 0.1, timestep, latents, step_generator(0, step))
    return latents


def _put_back(make: Callable[[], Scheduler], scheduler: Scheduler, *, in_blocks: bool) -> Scheduler:
    """Return a new scheduler with the state of `scheduler`, saved and read as in a checkpoint.

    make: function that returns a new scheduler. in_blocks: whether the checkpoint is that of a video denoised
    in frame blocks.
    """
    fresh = make()
    # The checkpoints of long videos and of short ones store schedulers in different formats.
    if in_blocks:
        buffer = io.BytesIO()
        torch.save(solver_state(scheduler, make()), buffer)
        buffer.seek(0)
        return restore_solver(fresh, torch.load(buffer, weights_only=True))
    kept = SolverState(step=0, latents=torch.empty(0), scheduler=scheduler_state(scheduler)).to_bytes()
    restore(fresh, SolverState.from_bytes(kept).scheduler, _CPU)
    return fresh
