"""Configurations of diffusers' schedulers that are known to run, so that they need no trial run.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KNOWN: dict[str, dict[str, Any]] = {
    "UniPCMultistepScheduler": {
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "solver_type": "bh2",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": [],
        "final_sigmas_type": "zero",
    },
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000},
    "EulerAncestralDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}
"""Mapping from the class name of a scheduler to a configuration with which it is known to run.

The configuration has the values that published models have for those keys that affect the scheduler's steps.
"""
_NEEDED = {
    "UniPCMultistepScheduler": {"prediction_type", "use_flow_sigmas"},
    "EulerAncestralDiscreteScheduler": {"prediction_type", "rescale_betas_zero_snr", "timestep_spacing"},
}
"""Mapping from a scheduler class to the configuration keys that must be present, because the class's defaults
for these keys may not run."""
_HARMLESS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "solver_p": None,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "sigma_min": None,
    "sigma_max": None,
    "shift_terminal": None,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
}
"""Mapping from other keys of schedulers' configurations to their default values in diffusers. A configuration
that repeats these defaults is still known to run."""
_SHIFTS = ("shift", "flow_shift")


def is_known(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler is known to run: a published model has its class and configuration.

    name: the scheduler's class name. config: its configuration, in which the timestep shift may differ.
    """
    if name not in _KNOWN or _NEEDED.get(name, set()) - config.keys():
        return False
    known = _HARMLESS | _KNOWN[name]
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key in _SHIFTS:
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1000:
                return False
        elif key not in known or value != known[key]:
            return False
    return True
