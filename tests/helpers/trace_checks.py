"""Checks of the spans and the rows of a trace."""

from collections.abc import Iterable
from typing import Any

from paradit.trace.merge import Span


def only(spans: Iterable[Span], category: str) -> list[Span]:
    return [span for span in spans if span.category == category]


def lies_in(inner: Span, outer: Iterable[Span]) -> bool:
    return any(span.begin <= inner.begin and inner.end <= span.end for span in outer)


def check_rows(trace: dict[str, Any]) -> None:
    """Check that every row has a name, and that its spans lie within each other or apart.

    Viewers cannot draw spans that overlap otherwise.
    """
    events = trace["traceEvents"]
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            row = event["pid"], event["tid"]
            rows.setdefault(row, []).append((event["ts"], event["ts"] + event["dur"]))
    assert rows.keys() == named
    assert len({thread for _, thread in named}) == len(named)
    for spans_of_row in rows.values():
        open_until: list[float] = []
        for begin, end in sorted(spans_of_row, key=lambda times: (times[0], -times[1])):
            while open_until and open_until[-1] <= begin + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)
