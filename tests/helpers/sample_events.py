"""Sample event of every class."""

import types
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from paradit.progress import Event

RESULT = {
    **{"path": "a.mp4", "num_frames": 9, "width": 32, "height": 32, "fps": 8, "seed": 0, "model": "shapes"},
    **{"seconds": {"denoise": 1.0}, "device": "cpu"},
}
PLAN = {
    **RESULT,
    **{
        "prompt": "p",
        "method": "full",
        "pipeline_class": "P",
        "model_folder": "m",
        "latent_shape": [1, 2],
        "tokens": 3,
    },
    **{"num_inference_steps": 4, "guidance_scale": 5.0, "step_flops": 6, "flops": 7, "dtype": "fp32"},
    **{"memory_bytes": {"peak": 8}, "ranks": 1, "steps": "", "inputs": ""},
}


def sample(kind: type[Event]) -> Event:
    """Return an event of a class, with a value of the right type in every field."""
    special = {"result": RESULT, "plan": PLAN, "stages": [("decode",)], "by_rank": [10], "levels": (1, 2)}
    hints = get_type_hints(kind)
    return kind(**{each.name: special.get(each.name, value_of(hints[each.name])) for each in fields(kind)})


def value_of(hint: Any) -> Any:
    if get_origin(hint) is types.UnionType:
        hint = get_args(hint)[0]
    return {str: "denoise", int: 1, float: 0.5}.get(hint) or {}
