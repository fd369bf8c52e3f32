"""Reading and writing of placements as text: JSON, or a list of the ranks of each stage. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import digits, shown
from paradit.config.options import read_object, read_values
from paradit.config.placement import Placement, check_rank, placement_fields
from paradit.scheduling.stages import PLACED


def read_placement(text: str) -> Placement:
    """Return the placement (which ranks do which stages) that a JSON text holds.

    The text was written by `Placement.to_json`. Raises InputError if it is not valid.
    """
    return Placement.of(**read_fields(text))


def read_fields(text: str) -> dict[str, Any]:
    """Return the fields of a placement that a JSON text holds. Raises InputError if the text is not valid."""
    return read_values(placement_fields(), read_object(text, "the placement"))


def read_groups(text: str) -> dict[str, tuple[int, ...]]:
    """Return the ranks of each stage, written like "denoise=0-5 decode=6,7 encode=6". Raises InputError."""
    groups: dict[str, tuple[int, ...]] = {}
    for word in text.split():
        match = re.fullmatch(r"(\w+)=(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", word)
        if match is None or match[1] not in PLACED:
            raise InputError(
                "placement must be written like 'denoise=0-5 decode=6 encode=6' or name a .json file, "
                f"got {shown(word)}"
            )
        ranks: list[int] = []
        for part in match[2].split(","):
            first, _, last = part.partition("-")
            check_rank(match[1], digits(last or first))  # before a range to a huge number is listed
            ranks += range(digits(first), digits(last or first) + 1)
        groups[match[1]] = tuple(ranks)
    if not groups:
        raise InputError("placement is empty: write 'denoise=0-5 decode=6 encode=6', or leave it out")
    return groups


def write_groups(placement: Placement) -> str:
    """Return the ranks of a placement's stages as text, which `read_groups` reads."""
    groups = {"denoise": placement.denoise_ranks, "decode": placement.decode_ranks}
    groups |= {"encode": placement.encode} if placement.encode is not None else {}
    return " ".join(f"{stage}={_ranges(ranks)}" for stage, ranks in groups.items())


def _ranges(ranks: Sequence[int]) -> str:
    """Return ranks as text: `0-6` if they are consecutive, otherwise `0,2,5`."""
    if len(ranks) > 1 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))
