"""Schedulers of diffusers for flow models, by short names, and the timesteps that they set.

Does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import shown

TRAINING_TIMESTEPS = 1000
"""Number of timesteps that flow models are trained with; a timestep is this number times sigma."""
_MULTISTEP = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@dataclass(frozen=True, kw_only=True)
class FlowScheduler:
    """Scheduler class of diffusers that denoises flow models."""

    class_name: str
    help: str
    shift: str = "shift"
    """Name of the timestep shift in the class's configuration."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration, apart from the shift, that makes the class a scheduler for flow models."""
    takes_timesteps: bool = True
    """Whether the class takes a list of timesteps; HunyuanVideo needs such a class."""
    evaluations: int = 1
    """Number of evaluations of the model in a step; the last step has one, whatever this number is."""
    holds: int = 0
    """Number of tensors as large as the latents that the class keeps from one step to the next."""
    whole_timesteps: bool = False
    """Whether the class rounds the timesteps that the model gets down to whole numbers."""

    def num_evaluations(self, num_inference_steps: int) -> int:
        """Return the number of evaluations of the model in all steps."""
        return self.evaluations * (num_inference_steps - 1) + 1


FLOW_SCHEDULERS = {
    "unipc": FlowScheduler(
        class_name="UniPCMultistepScheduler",
        help="multistep, the default of Wan",
        shift="flow_shift",
        config=_MULTISTEP,
        holds=3,  # two model outputs, and the sample before the step
        whole_timesteps=True,
    ),
    "euler": FlowScheduler(class_name="FlowMatchEulerDiscreteScheduler", help="the default of HunyuanVideo"),
    "lcm": FlowScheduler(class_name="FlowMatchLCMScheduler", help="fresh noise after each step"),
    "heun": FlowScheduler(
        class_name="FlowMatchHeunDiscreteScheduler",
        help="two evaluations a step",
        takes_timesteps=False,
        evaluations=2,
        holds=2,
    ),
    "dpm++": FlowScheduler(
        class_name="DPMSolverMultistepScheduler",
        help="multistep",
        shift="flow_shift",
        config=_MULTISTEP,
        takes_timesteps=False,
        holds=2,
        whole_timesteps=True,
    ),
    "deis": FlowScheduler(
        class_name="DEISMultistepScheduler",
        help="multistep",
        shift="flow_shift",
        config=_MULTISTEP,
        takes_timesteps=False,
        holds=2,
        whole_timesteps=True,
    ),
}
"""Mapping from the short name of a scheduler to its class and configuration."""


def find_scheduler(name: object) -> FlowScheduler:
    """Return the scheduler with a short name. Raises InputError, which suggests the nearest name."""
    if isinstance(name, str) and name in FLOW_SCHEDULERS:
        return FLOW_SCHEDULERS[name]
    near = [short for short, one in FLOW_SCHEDULERS.items() if one.class_name == name]
    near = near or difflib.get_close_matches(str(name).lower(), FLOW_SCHEDULERS, n=1, cutoff=0.4)
    hint = f": did you mean {near[0]}?" if near else ""
    raise InputError(f"scheduler must be one of {', '.join(FLOW_SCHEDULERS)}, got {shown(name)}{hint}")


def scheduler_of_class(class_name: str) -> FlowScheduler | None:
    """Return the scheduler that has a class of diffusers; None if the class is not in the table."""
    return next((one for one in FLOW_SCHEDULERS.values() if one.class_name == class_name), None)


def names_that_take_timesteps() -> str:
    """Return the names of the schedulers that take a list of timesteps, as text."""
    return ", ".join(name for name, one in FLOW_SCHEDULERS.items() if one.takes_timesteps)


def model_timesteps(
    scheduler: FlowScheduler,
    num_inference_steps: int,
    shift: float,
    timesteps: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Return the timesteps that a Wan model gets, one for each evaluation, as diffusers' classes set them.

    shift: the timestep shift. timesteps: timesteps of the steps before the shift; None: the scheduler's own.
    """
    steps = num_inference_steps
    if timesteps is not None:
        sigmas = [timestep / TRAINING_TIMESTEPS for timestep in timesteps]
    elif scheduler.class_name == "UniPCMultistepScheduler":
        sigmas = _linspace(1, 1 / TRAINING_TIMESTEPS, steps + 1)[:-1]
    elif scheduler.shift == "flow_shift":
        sigmas = [1 - alpha for alpha in _linspace(1, 1 / TRAINING_TIMESTEPS, steps + 1)[:0:-1]]
    else:
        # The smallest sigma has been shifted when the scheduler was made, and is shifted again below.
        least = shifted(1 / TRAINING_TIMESTEPS, shift)
        sigmas = _linspace(1, least, steps)
    sigmas = [shifted(sigma, shift) for sigma in sigmas]
    if scheduler.class_name == "UniPCMultistepScheduler" and sigmas[0] > 1 - 1e-6:
        sigmas[0] -= 1e-6  # as the class does
    found = [TRAINING_TIMESTEPS * sigma for sigma in sigmas]
    if scheduler.whole_timesteps:
        found = [float(int(timestep)) for timestep in found]
    return (found[0], *(timestep for timestep in found[1:] for _ in range(scheduler.evaluations)))


def _linspace(first: float, last: float, number: int) -> list[float]:
    """Return evenly spaced numbers with the same rounding as `numpy.linspace`."""
    gap = (last - first) / max(1, number - 1)
    return [*(index * gap + first for index in range(number - 1)), last if number > 1 else first]


def shifted(sigma: float, shift: float) -> float:
    """Return the noise level `sigma` after a timestep shift."""
    return shift * sigma / (1 + (shift - 1) * sigma)
