"""Summary of a merged trace: where each rank's time went, and how much communication was hidden."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.files import read_text
from paradit.trace.merge import Span
from paradit.trace.spans import CHANNEL, EXCHANGE, LINK, MESSAGE, STAGE, STEP

MAX_TRACE = 2**29
"""Largest size of a trace file, in bytes."""


@dataclass(frozen=True, kw_only=True)
class RankSummary:
    """Summary of one rank's time in a trace, from the first span of any rank to the last.

    `preparing`, `busy`, `communicating` and `idle` add up to that time.
    """

    rank: int
    preparing: float
    """Seconds that the rank spends on loading its part of the model and measuring its link to other ranks."""
    busy: float
    """Seconds that the rank spends in the stages of requests, without the waits."""
    communicating: float
    """Seconds that the rank waits for messages in denoising steps."""
    idle: float
    """Seconds for which the rank neither loads, computes a stage nor waits for messages of a denoising step:
    it waits for other stages and ranks, or is between two stages."""
    messages: int
    """Number of exchanges with other ranks that this rank began in denoising steps."""
    bytes_sent: int
    """Number of bytes that this rank sent by exchanges in denoising steps."""
    alone: float | None
    """Seconds that the exchanges of denoising steps would take one after the other, without any other work.

    None if the link is not known.
    """

    exposed: float | None
    """Seconds that this rank waited for exchanges that were still travelling; at most `alone`.

    None if the link is not known. If a wait for a message is longer than the message takes alone, the rest is
    a wait for the rank that sends it, which counts in `communicating` only.
    """

    @property
    def hidden(self) -> float | None:
        """Fraction, 0 to 1, of the exchanges' time (`alone`) in which this rank did not wait for them.

        None if the link is not known, or if there were no exchanges.
        """
        return 1 - self.exposed / self.alone if self.alone and self.exposed is not None else None


def read_trace(path: Path) -> dict[int, list[Span]]:
    """Return each rank's spans from a file that `--trace` wrote.

    Raises InputError if the file cannot be read, is not a valid trace or holds no stage.
    """
    try:
        events = json.loads(read_text(path, MAX_TRACE))["traceEvents"]
        spans = [(event["pid"], _span(event)) for event in events if event["ph"] == "X"]
    except OSError as error:
        raise InputError(f"trace {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, LookupError):
        raise InputError(
            f"{str(path)!r} is not a trace: name a file that `paradit generate --trace` wrote"
        ) from None
    by_rank: dict[int, list[Span]] = {}
    for rank, span in spans:
        by_rank.setdefault(rank, []).append(span)
    if not any(span.category == STAGE for _, span in spans):
        raise InputError(
            f"trace {str(path)!r} has no stages: its run ended too early, or another program wrote it"
        )
    return by_rank


def _span(event: dict[str, Any]) -> Span:
    begin = round(1000 * event["ts"])
    return Span(event["name"], event["cat"], begin, begin + round(1000 * event["dur"]), event["args"])


def summarize(by_rank: Mapping[int, Iterable[Span]]) -> list[RankSummary]:
    """Return a summary of each rank's time in a trace, in the order of ranks.

    The time of a message alone is the link's latency, plus the time of the bytes sent or received, whichever
    are more (Hockney's model, as in `tuning.rehearsal`). `alone` and `exposed` are None without a measured
    link. They are None on CUDA, too, where waits are not visible: a CUDA stream waits, and not this process.
    """
    spans = [span for spans in by_rank.values() for span in spans]
    total = max(span.end for span in spans) - min(span.begin for span in spans)
    return [_summary(rank, list(spans), total) for rank, spans in sorted(by_rank.items())]


def _summary(rank: int, spans: list[Span], total: int) -> RankSummary:
    stages = [span for span in spans if span.category == STAGE]
    requests = [span for span in stages if "request" in span.about]
    steps = _Apart(span for span in spans if span.category == STEP)
    waits = [span for span in spans if span.category in (EXCHANGE, CHANNEL)]
    messages = [span for span in spans if span.category == MESSAGE and steps.at(span.begin)]
    alone = _alone(messages, [span for span in stages if span.name == LINK])

    in_requests = _Apart(requests)
    communicating = _length(wait for wait in waits if steps.at(wait.begin))
    preparing = _length(stages) - _length(requests)
    busy = _length(requests) - _length(wait for wait in waits if in_requests.at(wait.begin))
    return RankSummary(
        rank=rank,
        preparing=preparing / 1e9,
        busy=busy / 1e9,
        communicating=communicating / 1e9,
        idle=(total - preparing - busy - communicating) / 1e9,
        messages=len(messages),
        bytes_sent=sum(message.about["sent"] for message in messages),
        alone=sum(alone) if alone is not None else None,
        exposed=_exposed(messages, alone, _Apart(waits)) if alone is not None else None,
    )


def _alone(messages: list[Span], links: list[Span]) -> list[float] | None:
    """Return, for each message, the seconds that it would take without other work, by the measured link.

    Returns None if no link was measured, or if it was measured on another device than a CPU.
    """
    if not links or links[-1].about.get("device") != "cpu":
        return None
    latency, seconds_per_byte = (links[-1].about[name] for name in ("latency", "seconds_per_byte"))
    return [
        latency + seconds_per_byte * max(message.about["sent"], message.about["received"])
        for message in messages
    ]


def _exposed(messages: list[Span], alone: list[float], waits: _Apart) -> float:
    seconds = 0.0
    for message, most in zip(messages, alone, strict=True):
        wait = waits.at(message.end)  # its arrival is known only at the end of a wait for it
        if wait is not None:
            seconds += min((message.end - wait.begin) / 1e9, most)
    return seconds


def _length(spans: Iterable[Span]) -> int:
    return sum(span.end - span.begin for span in spans)


class _Apart:
    """Spans of a trace that do not overlap, searchable by time."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans, key=lambda span: span.begin)
        self._begins = [span.begin for span in self._spans]

    def at(self, time: int) -> Span | None:
        """Return the span that is in progress at `time`, in nanoseconds; None if there is none."""
        before = bisect_right(self._begins, time) - 1
        return self._spans[before] if before >= 0 and time <= self._spans[before].end else None
