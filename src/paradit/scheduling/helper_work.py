"""Attention co-processing: which idle decode ranks take a share of a step's attention, and how large a share.

PipeDiT's co-processing (arXiv 2511.12056) gives every rank an equal share, and does not say who decides when
decode ranks help. Here a decode rank gets what it can compute, and its link can carry, in the time that the
denoise ranks take for the rest. Help that does not make steps faster is not requested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

TRIALS = 3
"""Number of denoising steps that are timed with idle decode ranks taking a share of the attention, and as
many without, before the two are compared. A warm-up step of each kind comes first and does not count."""
KEPT = 5
"""Number of steps whose times are compared: the latest in which idle decode ranks take a share of the
attention, and the latest in which they do not."""


@dataclass(frozen=True, kw_only=True)
class HelperSpeed:
    """Speed of a decode rank that helps with attention: seconds per row, and a fixed overhead."""

    compute: float
    """Seconds in which the rank computes one attention row: one query of one head."""
    link: float
    """Seconds in which one row of a head travels: a query, key, value or result."""
    fixed: float
    """Seconds that an idle decode rank needs for any share of the attention, however small: it waits for the
    first data, and gets the keys and values of a head that is split between ranks."""


def helpers_work(
    num_rows: int, row_seconds: float, num_ranks: int, helpers: Sequence[HelperSpeed], parts: int
) -> list[int]:
    """Return how many of an attention's rows each helper computes; 0 if the helper would finish too late.

    A helper is a decode rank that takes a share of the attention while it is idle; a row is one query of one
    head. The numbers are chosen so that all ranks finish at the same time.

    num_rows: number of rows of all heads. row_seconds: seconds that each of the denoise ranks takes for one
    row. num_ranks: number of denoise ranks. helpers: speed of each helper. parts: number of parts (chunks or
    guidance branches) in which the rows reach the helpers; each part travels while another is computed.
    """
    # All ranks are to end at the same time T, in which a denoise rank does T / row_seconds rows, and a helper
    # (T - fixed) / row (`_row`). T follows from the number of rows:
    #   num_ranks T / row_seconds + sum over helpers with fixed < T of (T - fixed) / row = num_rows
    rate, ahead = num_ranks / row_seconds, 0.0
    costs = [_row(helper, parts) for helper in helpers]
    end = num_rows / rate
    # Helpers join in order of their fixed time. Each one lowers T, but not below its own fixed time, so none
    # that has joined drops out again.
    for fixed, row in sorted((helper.fixed, row) for helper, row in zip(helpers, costs, strict=True)):
        if fixed >= end:
            break
        rate, ahead = rate + 1 / row, ahead + fixed / row
        end = (num_rows + ahead) / rate
    return [max(0, int((end - helper.fixed) / row)) for helper, row in zip(helpers, costs, strict=True)]


def _row(helper: HelperSpeed, parts: int) -> float:
    # A row takes 3 times `link` for its query, key and value, then `compute`, then `link` for its result. In
    # one part these follow each other, and add up; in many parts they overlap, and only the longest counts.
    times = 3 * helper.link, helper.compute, helper.link
    longest = max(times)
    return longest + (sum(times) - longest) / parts


class Judge:
    """Record of step times that decides whether steps are faster if decode ranks help with attention."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[int, ...], list[float]] = defaultdict(list)

    def choose(self, idle: tuple[int, ...]) -> tuple[int, ...]:
        """Return the ranks that help with attention in the next step: all idle decode ranks, or none.

        idle: decode ranks that are idle now. A set of ranks that has not helped before is tried first, in
        steps that alternate with steps without help.
        """
        if not idle:
            return ()
        alone, helped = self._seconds[()], self._seconds[idle]
        # The first step of each kind is a warm-up, hence <=.
        if min(len(alone), len(helped)) <= TRIALS:
            return idle if len(helped) < len(alone) else ()
        return idle if _lately(helped) < _lately(alone) else ()

    def record(self, helpers: tuple[int, ...], seconds: float) -> None:
        """Record the seconds of a denoising step.

        helpers: the decode ranks that took a share of the step's attention; empty if none did.
        """
        self._seconds[helpers].append(seconds)


def _lately(seconds: list[float]) -> float:
    # The latest steps count, because other load on the machine changes; the median ignores single outliers.
    return median(seconds[1:][-KEPT:])
