"""Traces: the record of what every rank did and when, in one valid file, and its summary."""

import json
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paradit.config.errors import InputError
from paradit.trace import spans
from paradit.trace.merge import Span, chrome_trace, collected, merge, read_spans
from paradit.trace.spans import CHANNEL, EXCHANGE, LAYER, LINK, MESSAGE, STAGE, STEP, Tracing, recording, span
from paradit.trace.summary import read_trace, summarize
from trace_checks import check_rows, lies_in


def test_nothing_is_recorded_unless_asked_for() -> None:
    with recording(None, 0), span("a", STAGE), collected(None) as tracing:
        assert tracing is None
        assert not spans.is_recording()
        assert spans.begin("b", MESSAGE) is None
        spans.end(None)
    assert span("a", STAGE) is span("b", STEP, of=1) is spans.layer_span(0)


def test_what_is_recorded_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(7)  # the monotonic clock; the wall clock is read when it shows 7
    clock = SimpleNamespace(time_ns=lambda: 1000, perf_counter_ns=lambda: next(ticks))
    monkeypatch.setattr(spans, "time", clock)
    with recording(Tracing(tmp_path), 3), span("denoise", STAGE, request=1):
        message = spans.begin("messages", MESSAGE, sent=5)
        with span("step 1", STEP), spans.layer_span(0), spans.unrecorded(), span("unseen", STEP):
            next(ticks)
        spans.end(message, received=6)
    (path,) = tmp_path.iterdir()
    step, message_span, stage = read_spans(path)
    assert (stage.name, stage.category, stage.about) == ("denoise", STAGE, {"request": 1})
    assert (message_span.name, message_span.about) == ("messages", {"sent": 5, "received": 6})
    assert lies_in(step, [message_span]) and lies_in(message_span, [stage])
    # The wall clock's time, plus what the monotonic clock has counted since.
    times = [(one.begin, one.end) for one in (stage, message_span, step)]
    assert times == [(1001, 1007), (1002, 1006), (1003, 1005)]


def test_an_error_ends_its_spans_and_the_recording(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="no"),
        recording(Tracing(tmp_path), 0),
        span("decode", STAGE, request=0),
    ):
        raise OSError("no")
    assert not spans.is_recording()
    ((stage,),) = map(read_spans, tmp_path.iterdir())
    assert stage.about == {"request": 0}


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from paradit.trace.spans import *\n"
        "with recording(Tracing(Path(sys.argv[1])), 1), span('denoise', STAGE, request=0):\n"
        "    with span('step 1', STEP): pass\n"
        "    with span('step 2', STEP): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('["begin", 9, 17')  # an incomplete line, as after a power cut
    # The same rank, started again.
    with recording(Tracing(tmp_path), 1), span("denoise", STAGE, request=0):
        pass
    merge(tmp_path, tmp_path / "t.json")
    names = [(span.name, span.about.get("unfinished")) for span in read_trace(tmp_path / "t.json")[1]]
    assert names == [("denoise", True), ("step 1", None), ("step 2", True), ("denoise", None)]


def test_overlapping_spans_have_rows_of_their_own() -> None:
    recorded = {
        0: [
            Span("denoise", STAGE, 10_000, 20_000, {"request": 0}),
            Span("step 1", STEP, 10_000, 15_000),
            Span("wait", EXCHANGE, 14_500, 15_000),
            *(Span("messages", MESSAGE, 11_000 + n, 14_000 + n) for n in (0, 500, 2_999, 3_500)),
        ],
        4: [Span("layer 0", LAYER, 9_000, 9_500)],
    }
    trace = chrome_trace(recorded)
    check_rows(trace)
    names = [(e["pid"], e["args"]["name"]) for e in trace["traceEvents"] if e["name"].endswith("_name")]
    assert names == [
        *[(0, name) for name in ("rank 0", "stages", "waiting", "messages", "messages 2", "messages 3")],
        *[(4, name) for name in ("rank 4", "layers")],
    ]
    (stage,) = [e for e in trace["traceEvents"] if e["name"] == "denoise"]
    assert (stage["ph"], stage["ts"], stage["dur"], stage["args"]) == ("X", 1.0, 10.0, {"request": 0})


def test_the_file_is_there_after_an_error_too(tmp_path: Path) -> None:
    target = tmp_path / "t.json"
    with (
        pytest.raises(KeyboardInterrupt),
        collected(target) as tracing,
        recording(tracing, 0),
        span("load", STAGE),
    ):
        raise KeyboardInterrupt
    assert tracing is not None and not tracing.folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert [span.name for span in read_trace(target)[0]] == ["load"]


SECOND = 10**9


def a_run(**link: Any) -> dict[int, list[Span]]:
    """Return spans of a run: rank 0 denoises in ten seconds, and rank 1 waits for it and decodes."""
    sizes = {"sent": 100, "received": 300}
    return {
        0: [
            Span(LINK, STAGE, 0, SECOND, link),
            Span("load", STAGE, SECOND, 2 * SECOND),
            Span("denoise", STAGE, 3 * SECOND, 13 * SECOND, {"request": 0}),
            # Before the steps, the ranks agree on the request, which is not an exchange of attention.
            Span("messages", MESSAGE, 3 * SECOND, 4 * SECOND, sizes),
            Span("wait", EXCHANGE, 3 * SECOND, 4 * SECOND),
            Span("step 1", STEP, 4 * SECOND, 8 * SECOND),
            Span("step 2", STEP, 8 * SECOND, 13 * SECOND),
            # Half hidden: the message takes 1 s alone, of which the rank waits for 0.5 s.
            Span("messages", MESSAGE, 5 * SECOND, 7 * SECOND, sizes),
            Span("wait", EXCHANGE, 6 * SECOND + SECOND // 2, 7 * SECOND),
            # Not hidden: 1 s of the wait is for the message, and 2 s are for the other rank.
            Span("messages", MESSAGE, 9 * SECOND, 12 * SECOND, sizes),
            Span("wait", EXCHANGE, 9 * SECOND, 12 * SECOND),
        ],
        1: [
            Span("wait for rank 0", CHANNEL, 2 * SECOND, 13 * SECOND),
            Span("decode", STAGE, 13 * SECOND, 20 * SECOND, {"request": 0}),
        ],
    }


def test_the_summary_of_a_run_made_by_hand(tmp_path: Path) -> None:
    made = a_run(latency=0.25, seconds_per_byte=0.0025, device="cpu")
    (tmp_path / "t.json").write_text(json.dumps(chrome_trace(made)))
    first, second = summarize(read_trace(tmp_path / "t.json"))
    assert (first.preparing, first.busy, first.communicating, first.idle) == (2, 5.5, 3.5, 9)
    assert (first.messages, first.bytes_sent, first.alone, first.exposed) == (2, 200, 2.0, 1.5)
    assert first.hidden == 0.25
    assert (second.preparing, second.busy, second.communicating, second.idle) == (0, 7, 0, 13)
    assert (second.messages, second.hidden) == (0, None)


@pytest.mark.parametrize("link", [{}, {"latency": 0.25, "seconds_per_byte": 0.0025, "device": "cuda"}])
def test_without_a_link_nobody_knows_what_was_hidden(link: dict[str, Any]) -> None:
    first, _ = summarize(a_run(**link))
    assert (first.hidden, first.alone, first.communicating) == (None, None, 3.5)


BAD = {
    "nothing": "", "text": "hello", "list": "[]", "number": "3", "no events": '{"events": []}',
    "no stages": '{"traceEvents": []}', "strange": '{"traceEvents": [{"ph": "X", "ts": "now"}]}',
    "another's": json.dumps({
        "traceEvents": [{"ph": "X", "ts": 1, "dur": 1, "pid": 7, "name": "f", "cat": "c", "args": {}}]
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BAD, "missing"])
def test_files_that_are_no_trace(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / "t.json").write_text(BAD[name])
    with pytest.raises(InputError, match=r"t\.json'"):
        read_trace(tmp_path / "t.json")
