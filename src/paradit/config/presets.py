"""Presets: named settings with which models make videos in few steps, from presets.toml."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.limits import MAX_GUIDANCE, shown
from paradit.config.options import ABOVE_ZERO, Option, decode


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for what a request leaves out; None and empty values are left to the model."""

    about: str
    """Models or LoRAs that the preset is meant for."""
    source: str
    """Address or text that says where the values are from."""
    scheduler: str
    timesteps: Annotated[tuple[float, ...], Option(least=ABOVE_ZERO, most=1000)] = ()
    shifted: bool = False
    """Whether the shift is in `timesteps` already."""
    shift: Annotated[float | None, Option(least=ABOVE_ZERO, most=100)] = None
    guidance_scale: Annotated[float | None, Option(least=ABOVE_ZERO, most=MAX_GUIDANCE)] = None
    expert_step: Annotated[int | None, Option(least=0, most=1000)] = None
    """Step at which the low-noise expert takes over, for models that have one."""


@cache
def presets() -> Mapping[str, Preset]:
    """Return all presets by name."""
    text = (resources.files("paradit.config") / "presets.toml").read_text(encoding="utf-8")
    return MappingProxyType({name: decode(Preset, one) for name, one in tomllib.loads(text).items()})


def find_preset(name: object) -> Preset:
    """Return the preset with a name. Raises InputError, which suggests the nearest name."""
    known = presets()
    if isinstance(name, str) and name in known:
        return known[name]
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
    hint = f": did you mean {near[0]}?" if near else ""
    raise InputError(f"preset must be one of {', '.join(known)}, got {shown(name)}{hint}")
