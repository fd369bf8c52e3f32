"""Denoising steps of a request: scheduler, timesteps, guidance, and the expert that computes each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import MAX_GUIDANCE, MAX_SHIFT, MIN_SHIFT, amount, shown, typed, whole
from paradit.config.presets import Preset, find_preset
from paradit.models.flow_schedulers import (
    FLOW_SCHEDULERS,
    TRAINING_TIMESTEPS,
    FlowScheduler,
    find_scheduler,
    model_timesteps,
    names_that_take_timesteps,
    scheduler_of_class,
    shifted,
)
from paradit.models.spec import ModelSpec

MAX_STEPS = TRAINING_TIMESTEPS
"""Largest number of denoising steps; more steps would repeat some of the training timesteps."""
LEAST_STEP = 1e-6
"""Smallest difference between the noise levels of two steps; less may be none in fp32."""
ASSUMED_SHIFT = 5.0
"""Timestep shift that is assumed, to count the steps of each expert, if the model's own is not known."""


@dataclass(frozen=True, kw_only=True)
class AskedSteps:
    """Fields of a `Request` that decide its denoising steps; `None` means the model's default."""

    preset: str | None = None
    """Name of a preset (`config.presets`), whose values are used for fields that are left out."""
    scheduler: str | None = None
    """Short name of the scheduler (`models.flow_schedulers`); `None`: the one in the model's folder."""
    shift: float | None = None
    """Timestep shift: `flow_shift` or `shift` in diffusers' schedulers."""
    timesteps: tuple[float, ...] | None = None
    """Timesteps of the denoising steps before the shift, from 1000 down; their number is the number of steps.
    """
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    """Scale of classifier-free guidance; 1 turns guidance off."""
    guidance_scale_2: float | None = None
    """Guidance scale of the low-noise expert, for models with two experts; `None`: the model's default if
    `guidance_scale` is the model's default too, and `guidance_scale` otherwise."""
    expert_step: int | None = None
    """Index of the step, from 0, at which the low-noise expert takes over; `None`: by the model's boundary.
    """


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Fields of a `ResolvedRequest` that decide its denoising steps."""

    preset: str | None = None
    """Name of the preset whose values were used for fields that the user left out."""
    scheduler: str | None = None
    """Short name of the scheduler; None: the one in the model's folder."""
    shift: float | None = None
    """Timestep shift; None: that of the scheduler in the model's folder."""
    timesteps: tuple[float, ...] | None = None
    """Timesteps of the denoising steps before the shift; None: as the scheduler sets them."""
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    """Guidance scale of the low-noise expert; None: the model's default, or `guidance_scale`."""
    expert_step: int | None = None
    """Index of the step at which the low-noise expert takes over; None: by the model's boundary."""

    @property
    def changed_steps(self) -> dict[str, Any]:
        """Values that are used in place of the model's own, by name, for descriptions of the request."""
        names = ("guidance_scale_2", "preset", "scheduler", "shift", "timesteps", "expert_step")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def sigmas(self) -> tuple[float, ...] | None:
        """Noise levels of the steps before the shift, as schedulers take them; None if no list is given."""
        return self.timesteps and tuple(timestep / TRAINING_TIMESTEPS for timestep in self.timesteps)

    @property
    def steps_to_do(self) -> int:
        """Number of denoising steps that are done; fewer than `num_inference_steps` if a video is changed."""
        return self.num_inference_steps

    def guidance_scales(self, spec: ModelSpec) -> tuple[float, ...]:
        """Return the guidance scale for each of a model's experts.

        Experts may have different default scales. A `guidance_scale` that is not the model's default is used
        for all experts, as in diffusers, unless there is a `guidance_scale_2`.
        """
        first, second, defaults = self.guidance_scale, self.guidance_scale_2, spec.defaults
        if second is None and first == defaults.guidance_scale:
            second = defaults.guidance_scale_2
        return (first, first if second is None else second)[: len(spec.transformers)]

    def branches(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the number of guidance branches (forward passes) in a step, for each of a model's experts.

        There is one for the prompt and, with guidance, one for the negative prompt. The latter is not needed
        at a guidance scale of 1, or if the transformer takes the guidance scale as an input.
        """
        return tuple(1 if spec.embedded_guidance or scale <= 1 else 2 for scale in self.guidance_scales(spec))

    def num_branches(self, spec: ModelSpec) -> int:
        """Return the largest number of guidance branches in a step; see `branches`."""
        return max(self.branches(spec))

    def flow_scheduler(self, spec: ModelSpec) -> FlowScheduler | None:
        """Return the scheduler, or None if it is one in the model's folder that `--scheduler` cannot name."""
        if self.scheduler is None:
            return scheduler_of_class(spec.scheduler)
        return find_scheduler(self.scheduler)

    def model_timesteps(self, spec: ModelSpec) -> tuple[float, ...]:
        """Return the timesteps that the transformer gets, one for each evaluation, computed without torch.

        Timesteps of steps that are not done (`steps_to_do`) are left out.

        If the scheduler is not one that `--scheduler` can name, or its configuration changes more than the
        shift, this is an approximation, as if it were UniPC. If the shift of the model is not known,
        `ASSUMED_SHIFT` is used.
        """
        scheduler = self.flow_scheduler(spec) or FLOW_SCHEDULERS["unipc"]
        shift = self.shift or spec.shift or ASSUMED_SHIFT
        every = model_timesteps(scheduler, self.num_inference_steps, shift, self.timesteps)
        return every[-scheduler.num_evaluations(self.steps_to_do) :]

    def evaluations(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return how often each of a model's experts is evaluated (guidance branches count as one)."""
        scheduler, steps = self.flow_scheduler(spec), self.steps_to_do
        in_all = scheduler.num_evaluations(steps) if scheduler else steps
        if len(spec.transformers) == 1:
            return (in_all,)
        if self.expert_step is not None:
            first = min(in_all, self.expert_step * (scheduler.evaluations if scheduler else 1))
        else:
            boundary = (spec.boundary_ratio or 0) * TRAINING_TIMESTEPS
            first = sum(timestep >= boundary for timestep in self.model_timesteps(spec))
        return first, in_all - first

    def forward_passes(self, spec: ModelSpec) -> int:
        """Return the number of forward passes of all steps, with one for each guidance branch."""
        each = zip(self.evaluations(spec), self.branches(spec), strict=True)
        return sum(times * branches for times, branches in each)


def resolved_steps(asked: AskedSteps, spec: ModelSpec) -> dict[str, Any]:
    """Return the fields of `Steps`, checked, and with the values of the preset and the model filled in.

    Raises InputError, one line that names the field, its value and the nearest valid one.
    """
    _check_flow(asked, spec)
    name = spec.preset if asked.preset is None else asked.preset
    preset = None if name is None else find_preset(name)
    given, steps = _timesteps(asked.timesteps), asked.num_inference_steps
    if given and steps not in (None, len(given)):
        raise InputError(
            f"timesteps has {len(given)} steps, and num_inference_steps is {shown(steps)}: leave one out"
        )
    shift = asked.shift
    # Another number of steps than the preset's needs other timesteps.
    if preset and preset.timesteps and not given and steps in (None, len(preset.timesteps)):
        given, shift = preset.timesteps, 1.0 if shift is None and preset.shifted else shift
    if preset and shift is None:
        shift = preset.shift
    defaults = spec.defaults
    if steps is None:
        steps = len(given) if given else defaults.num_inference_steps
    guidance = asked.guidance_scale
    if guidance is None:
        guidance = (preset and preset.guidance_scale) or defaults.guidance_scale
    hint = "1 turns guidance off"
    found: dict[str, Any] = {
        "preset": name,
        "scheduler": preset.scheduler if preset and asked.scheduler is None else asked.scheduler,
        "shift": None if shift is None else amount("shift", shift, least=MIN_SHIFT, most=MAX_SHIFT),
        "timesteps": given,
        "num_inference_steps": whole("num_inference_steps", steps, most=MAX_STEPS),
        "guidance_scale": amount("guidance_scale", guidance, most=MAX_GUIDANCE, hint=hint),
        "guidance_scale_2": _guidance_scale_2(asked.guidance_scale_2, spec),
    }
    found["expert_step"] = _expert_step(asked.expert_step, preset, found["num_inference_steps"], spec)
    made = Steps(**found)
    _check_scheduler(made, spec)
    _check_levels(made, spec)
    return found


def _check_flow(asked: AskedSteps, spec: ModelSpec) -> None:
    """Refuse settings that only flow models have, for a model of another kind. Raises InputError."""
    for name in () if spec.flow else ("preset", "scheduler", "shift", "timesteps"):
        if getattr(asked, name) is not None:
            raise InputError(f"{name} is for flow models, and '{spec.name}' is not one: leave it out")


def _timesteps(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | Mapping | Set) or not isinstance(value, Iterable):
        raise InputError(f"timesteps must be a list of numbers, got {typed(value)}")
    steps = tuple(amount("timesteps", one, most=TRAINING_TIMESTEPS) for one in value)
    if not 1 <= len(steps) <= MAX_STEPS:
        raise InputError(f"timesteps must be 1 to {MAX_STEPS} numbers, got {len(steps)}")
    falling = tuple(sorted(set(steps), reverse=True))
    if steps != falling:
        near, got = (",".join(f"{one:g}" for one in each) for each in (falling, steps))
        raise InputError(f"timesteps must fall from step to step, got {got}: the nearest is {near}")
    return steps


def parse_timesteps(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers in a list written `1000,750,500,250`; None for None. Raises InputError."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"timesteps must be written like 1000,750,500,250, got {shown(text)}") from None


def _guidance_scale_2(value: object, spec: ModelSpec) -> float | None:
    if value is None:
        return None
    if len(spec.transformers) == 1:
        raise InputError(
            f"guidance_scale_2 is for models with two experts, and '{spec.name}' has one: use guidance_scale"
        )
    return amount("guidance_scale_2", value, most=MAX_GUIDANCE, hint="1 turns guidance off")


def _expert_step(value: object, preset: Preset | None, steps: int, spec: ModelSpec) -> int | None:
    if len(spec.transformers) == 1:
        if value is not None:
            raise InputError(
                f"expert_step is for models with two experts, and '{spec.name}' has one: leave it out"
            )
        return None
    if value is None:  # the preset's step is one of the steps in its list
        return preset.expert_step if preset and steps == len(preset.timesteps) else None
    hint = "the steps that the high-noise expert takes"
    return whole("expert_step", value, least=0, most=steps, hint=hint)


def _check_levels(steps: Steps, spec: ModelSpec) -> None:
    """Refuse timesteps that are the same noise level, or no noise, after the shift. Raises InputError."""
    shift = steps.shift or spec.shift or ASSUMED_SHIFT
    given = steps.timesteps or ()
    levels = [*(shifted(sigma, shift) for sigma in steps.sigmas or ()), 0.0]
    for timestep, level, following in zip(given, levels, levels[1:], strict=False):
        if level - following < LEAST_STEP:
            raise InputError(
                f"timesteps: {timestep:.9g} is followed by nearly the same noise level after the shift of "
                f"{shift:g}: leave it out"
            )


def _check_scheduler(steps: Steps, spec: ModelSpec) -> None:
    """Refuse a list of timesteps, or a model, that the scheduler cannot be used with. Raises InputError."""
    scheduler = steps.flow_scheduler(spec)
    if scheduler is None or scheduler.takes_timesteps:
        return
    name = steps.scheduler or scheduler.class_name
    able = names_that_take_timesteps()
    if steps.timesteps is not None:
        raise InputError(f"scheduler {name} takes no list of timesteps: use one of {able}")
    if steps.scheduler and spec.given_sigmas:
        raise InputError(
            f"scheduler {name} does not take sigmas, which {spec.pipeline_class} passes to it: use one of "
            f"{able}"
        )
