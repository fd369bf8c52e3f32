"""Placements as they are written: in JSON, or as the ranks of stages. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import digits, shown
from paradit.config.placement import Placement
from paradit.config.placement_values import check_rank
from paradit.scheduling.stages import STAGES


def read_placement(text: str) -> Placement:
    """From what `Placement.to_json` gives. Raises InputError where the text is none of a placement."""
    return Placement.of(**read_fields(text))


def read_fields(text: str) -> dict[str, Any]:
    """Some of a placement's fields from JSON. Raises InputError for what is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the placement is no JSON: {error}") from None
    known = Placement().flat()
    if not isinstance(found, dict) or set(found) - set(known):
        unknown = ", ".join(sorted(set(found) - set(known))) if isinstance(found, dict) else found
        raise InputError(f"a placement has the fields {', '.join(known)}, got {shown(unknown)}")
    for name in STAGES:
        if found.get(name) is not None:
            found[name] = _ranks_of(name, found[name])
    return found


def read_groups(text: str) -> dict[str, tuple[int, ...]]:
    """The ranks of stages, written as in "denoise=0-5 decode=6,7 encode=6". Raises InputError."""
    groups: dict[str, tuple[int, ...]] = {}
    for word in text.split():
        match = re.fullmatch(r"(\w+)=(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", word)
        if match is None or match[1] not in STAGES:
            raise InputError(
                "placement is written like 'denoise=0-5 decode=6 encode=6' or names a .json file, "
                f"got {shown(word)}"
            )
        ranks: list[int] = []
        for part in match[2].split(","):
            first, _, last = part.partition("-")
            check_rank(match[1], digits(last or first))
            ranks += range(digits(first), digits(last or first) + 1)
        groups[match[1]] = tuple(ranks)
    if not groups:
        raise InputError("placement is empty: write 'denoise=0-5 decode=6 encode=6', or leave it out")
    return groups


def write_groups(placement: Placement) -> str:
    """The ranks of its stages, as `read_groups` reads them."""
    groups = {"denoise": placement.denoise_ranks, "decode": placement.decode_ranks}
    groups |= {"encode": placement.encode} if placement.encode is not None else {}
    return " ".join(f"{stage}={_ranges(ranks)}" for stage, ranks in groups.items())


def _ranges(ranks: Sequence[int]) -> str:
    """Neighbours as `0-6`."""
    if len(ranks) > 1 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))


def _ranks_of(stage: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(rank) is int for rank in value):
        raise InputError(f"{stage} must be a list of ranks, got {shown(value)}")
    return tuple(value)
