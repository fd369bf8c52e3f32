"""Values in a placement: their types, and how large numbers may be. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, shown, whole
from paradit.scheduling.stages import STAGES

COUNTS = {
    **dict.fromkeys(("ranks", "replicas", "decode_degree", "cfg_degree"), MAX_RANKS),
    "pipeline_degree": MAX_RANKS,
}
"""The largest that each number in a placement may be."""
ONE_OF_TWO = ("decode_degree", "cfg_degree")
"""Numbers whose two values the placement itself names."""
FLAGS = ("interleave", "compile", "coprocess")
OPEN = ("pipeline_degree", "interleave")
"""Fields that None leaves open."""


def check_values(fields: Mapping[str, Any]) -> None:
    """Raise InputError for a field of a placement that by itself cannot be."""
    given = {name: value for name, value in fields.items() if value is not None or name not in OPEN}
    for name, most in COUNTS.items():
        if name in given:
            whole(name, given[name], most=most, least=-math.inf if name in ONE_OF_TWO else 1)
    for name in FLAGS:
        if name in given and not isinstance(given[name], bool):
            raise InputError(f"{name} must be true or false, got {shown(given[name])}")
    for stage in STAGES:
        ranks = fields.get(stage)
        if ranks is None:
            continue
        if not isinstance(ranks, tuple) or not all(type(rank) is int for rank in ranks[: MAX_RANKS + 1]):
            raise InputError(f"{stage} must be a tuple of ranks, got {shown(ranks)}")
        if len(ranks) > MAX_RANKS:
            raise InputError(f"{stage} has at most {MAX_RANKS} ranks, got {len(ranks)}")
        for rank in ranks:
            check_rank(stage, rank)


def check_rank(stage: str, rank: int) -> None:
    """Raise InputError for a rank of a stage that no run has."""
    if abs(rank) >= MAX_RANKS:
        raise InputError(f"{stage} has a rank {shown(rank)}: ranks are 0 to {MAX_RANKS - 1} at most")
