"""Which idle decode ranks help the denoise group's attention in a step, and with how much of its work.

PipeDiT's attention co-processing (arXiv 2511.12056) gives every rank an equal share and leaves open who
decides when. Here a share is what a rank can do, and what its link can carry, in the time that the denoise
ranks take for theirs; and help that does not make steps quicker is not asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

TRIALS = 3
"""Steps with help, and without, after which they are compared; a first one of each does not count."""
KEPT = 5
"""How many of the last steps count."""


@dataclass(frozen=True, kw_only=True)
class HelperSpeed:
    """What a helper takes for its share of one attention, in seconds."""

    compute: float
    """For one row of a head."""
    link: float
    """For one row of a head on its way: a query, key, value or result."""
    fixed: float
    """However small the share: for the first to arrive, and for the keys and values of a head it shares."""


def helpers_work(
    num_rows: int, row_seconds: float, num_ranks: int, helpers: Sequence[HelperSpeed], parts: int
) -> list[int]:
    """How many of an attention's rows (of all heads) each helper computes; zero where it would be too late.

    num_rows: of all heads. row_seconds: what one takes on each of the `num_ranks` that denoise. parts: in how
    many pieces, of chunks or guidance branches, the work of an attention comes, each of which travels while
    another is computed.

    A row costs a helper 3 link in (its query, key and value), `compute`, and 1 link out. One after the other
    that is their sum; in many parts only the longest of the three, m: row = m + (sum - m) / parts. All are to
    end at the same time T, in which a rank that denoises does T / row_seconds rows, and a helper
    (T - fixed) / row:

        num_ranks T / row_seconds + sum over helpers with fixed < T of (T - fixed) / row = num_rows
    """
    rate, ahead = num_ranks / row_seconds, 0.0
    costs = [_row(helper, parts) for helper in helpers]
    end = num_rows / rate
    # Whoever has the least to wait for joins first; T only falls, so nobody who has joined drops out again.
    for fixed, row in sorted((helper.fixed, row) for helper, row in zip(helpers, costs, strict=True)):
        if fixed >= end:
            break
        rate, ahead = rate + 1 / row, ahead + fixed / row
        end = (num_rows + ahead) / rate
    return [max(0, int((end - helper.fixed) / row)) for helper, row in zip(helpers, costs, strict=True)]


def _row(helper: HelperSpeed, parts: int) -> float:
    times = 3 * helper.link, helper.compute, helper.link
    longest = max(times)
    return longest + (sum(times) - longest) / parts


class Judge:
    """Whether help makes steps of one kind quicker: from the times of those with it and without."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[int, ...], list[float]] = defaultdict(list)

    def choose(self, idle: tuple[int, ...]) -> tuple[int, ...]:
        """The helpers of the next step: all that are idle, or none."""
        if not idle:
            return ()
        alone, helped = self._seconds[()], self._seconds[idle]
        if min(len(alone), len(helped)) <= TRIALS:
            return idle if len(helped) < len(alone) else ()
        return idle if _lately(helped) < _lately(alone) else ()

    def record(self, helpers: tuple[int, ...], seconds: float) -> None:
        """What a step took that these have helped in."""
        self._seconds[helpers].append(seconds)


def _lately(seconds: list[float]) -> float:
    return median(seconds[1:][-KEPT:])
