"""Merge of the ranks' records into one Chrome trace, which Perfetto and chrome://tracing open.

These viewers show each rank as a process with rows (tracks): one for stages with their steps, one for waits,
and as many for layers, and for messages, as it takes to show those that overlap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paradit.files import behind_links
from paradit.trace.spans import CHANNEL, EXCHANGE, LAYER, MESSAGE, REHEARSAL, STAGE, STEP, Tracing

_NESTED = {"stages": (STAGE, STEP, REHEARSAL), "waiting": (EXCHANGE, CHANNEL)}
"""Mapping from the name of a row (track of a trace viewer) to the categories of the spans that it shows.

In each of these rows, spans are nested or disjoint. Every rank has these rows.
"""
_OVERLAPPING = {"layers": (LAYER,), "messages": (MESSAGE,)}


@dataclass(frozen=True)
class Span:
    """One activity of a rank in a trace, from `begin` to `end`, in nanoseconds.

    Times count from 1970 as recorded, and from the first span if read back from a trace.
    """

    name: str
    category: str
    begin: int
    end: int
    about: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def collected(target: Path | None, *, layers: bool = False) -> Iterator[Tracing | None]:
    """Yield settings by which ranks record traces in a temporary folder; then merge the traces to `target`.

    They are merged after the `with` body, even if it raises. If `target` is None, nothing is traced, and None
    is yielded. layers: whether single transformer layers are recorded too.
    """
    if target is None:
        yield None
        return
    with TemporaryDirectory(prefix="paradit-trace-") as folder:
        try:
            yield Tracing(Path(folder), layers)
        finally:
            merge(Path(folder), target)


def merge(folder: Path, target: Path) -> None:
    """Merge the trace records of all ranks in `folder` into `target`, which appears once it is complete."""
    by_rank: dict[int, list[Span]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rank, _ = path.stem.split("-")
        by_rank.setdefault(int(rank), []).extend(read_spans(path))
    target = behind_links(target)
    # File names have at most 255 bytes.
    part = target.with_name(f".{target.name[:200]}-{os.getpid()}.part")
    try:
        part.write_text(json.dumps(chrome_trace(by_rank)), encoding="utf-8")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_spans(path: Path) -> list[Span]:
    """Return the spans in one process's trace file, which may end early if the process was killed.

    A span that was not ended lasts until the last entry of its process, and is marked `unfinished`.
    """
    begun: dict[int, tuple[int, str, str, dict[str, Any]]] = {}
    spans, now = [], 0
    for kind, number, now, *rest in _lines(path):
        if kind == "begin":
            name, category, about = rest
            begun[number] = (now, name, category, about)
        else:
            began, name, category, about = begun.pop(number)
            spans.append(Span(name, category, began, now, {**about, **rest[0]}))
    spans += [
        Span(name, category, began, now, {**about, "unfinished": True})
        for began, name, category, about in begun.values()
    ]
    return spans


def _lines(path: Path) -> Iterator[list[Any]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # a killed process may leave its last line incomplete
            yield json.loads(line)


def chrome_trace(by_rank: Mapping[int, Iterable[Span]]) -> dict[str, Any]:
    """Return each rank's spans as a Chrome trace; times are microseconds since the first span's begin."""
    zero = min((span.begin for spans in by_rank.values() for span in spans), default=0)
    events: list[dict[str, Any]] = []
    threads = count(1)  # unique across ranks: a viewer may take equal numbers in two processes for one thread
    for rank, spans in sorted(by_rank.items()):
        events.append(_named("process_name", rank, 0, f"rank {rank}"))
        # Of spans that begin together the longest comes first, so that viewers nest the others in it.
        for name, row in _rows(sorted(spans, key=lambda span: (span.begin, -span.end))):
            thread = next(threads)
            events.append(_named("thread_name", rank, thread, name))
            order = {"name": "thread_sort_index", "ph": "M", "pid": rank, "tid": thread}
            events.append({**order, "args": {"sort_index": thread}})
            events += [_complete(span, rank, thread, zero) for span in row]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _rows(spans: Sequence[Span]) -> Iterator[tuple[str, list[Span]]]:
    """Yield one rank's spans as rows (tracks of a trace viewer), each with its name, in viewing order."""
    for name, categories in _NESTED.items():
        row = [span for span in spans if span.category in categories]
        if row:
            yield name, row
    for name, categories in _OVERLAPPING.items():
        for number, row in enumerate(_apart([span for span in spans if span.category in categories])):
            yield f"{name} {number + 1}" if number else name, row


def _apart(spans: Iterable[Span]) -> list[list[Span]]:
    """Distribute spans over rows so that none in a row overlap.

    Each span, in order of begin, goes to the first row that is free.
    """
    rows: list[list[Span]] = []
    for span in spans:
        free = next((row for row in rows if row[-1].end <= span.begin), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows


def _named(what: str, rank: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}


def _complete(span: Span, rank: int, thread: int, zero: int) -> dict[str, Any]:
    return {
        "name": span.name,
        "cat": span.category,
        "ph": "X",
        "pid": rank,
        "tid": thread,
        "ts": (span.begin - zero) / 1000,
        "dur": (span.end - span.begin) / 1000,
        "args": dict(span.about),
    }
