"""Traces: the record of what every rank did and when, in one valid file, and its summary."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.redistribution import Redistribution
from paradit.distributed.shares import Box, Shares
from paradit.distributed.tensor_queue import Channel
from paradit.distributed.transport import Transport
from paradit.distributed.world import World
from paradit.models.spec import read_spec
from paradit.scheduling.balance import simulate
from paradit.testing import run_world
from paradit.trace import spans
from paradit.trace.merge import Span, chrome_trace, collected, merge, read_spans
from paradit.trace.spans import CHANNEL, EXCHANGE, LAYER, LINK, MESSAGE, STAGE, STEP, Tracing, recording, span
from paradit.trace.summary import read_trace, summarize
from runs import Command
from tiny import save_folder

COMMAND = [sys.executable, "-m", "paradit"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS, PROMPTS = 2, ["a red circle", "a blue square", "a green ring"]


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
    for row in rows.values():
        open_until: list[float] = []
        for begin, end in sorted(row, key=lambda times: (times[0], -times[1])):
            while open_until and open_until[-1] <= begin + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)


def test_nothing_is_recorded_unless_asked_for() -> None:
    with recording(None, 0), span("a", STAGE), collected(None) as tracing:
        assert tracing is None
        assert not spans.is_recording()
        assert spans.begin("b", MESSAGE) is None
        spans.end(None)
    assert span("a", STAGE) is span("b", STEP, of=1) is spans.layer_span(0)


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    before = time.time_ns()
    with recording(Tracing(tmp_path), 3), span("denoise", STAGE, request=1):
        message = spans.begin("messages", MESSAGE, sent=5)
        with span("step 1", STEP), spans.layer_span(0), spans.unrecorded(), span("unseen", STEP):
            time.sleep(0.02)
        spans.end(message, received=6)
    (path,) = tmp_path.iterdir()
    step, message_span, stage = read_spans(path)
    assert (stage.name, stage.category, stage.about) == ("denoise", STAGE, {"request": 1})
    assert (message_span.name, message_span.about) == ("messages", {"sent": 5, "received": 6})
    assert lies_in(step, [message_span]) and lies_in(message_span, [stage])
    assert step.end - step.begin >= 20e6
    # The wall clock may be adjusted while the monotonic one continues, but by less than a second.
    assert before - 1e9 < stage.begin < stage.end < time.time_ns() + 1e9


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


def command(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder, env={**ENV, **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=STEPS)


@pytest.fixture(scope="module")
def traced(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the trace of three requests on two ranks: both denoise, and the second encodes and decodes."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    groups = "denoise=0-1 decode=1 encode=1"
    done = command(
        folder, "generate", "--prompts-file", "prompts.txt", "--model", str(model), "--ranks", "2",
        "--placement", groups, "--attention", "ulysses", "--interleave",
        "--trace", "t.json", "--trace-layers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "t.json"


def test_the_trace_of_a_run(traced: Path) -> None:
    check_rows(json.loads(traced.read_text()))
    by_rank = read_trace(traced)
    assert list(by_rank) == [0, 1]
    for rank, stages_of in enumerate([["denoise"], ["encode", "denoise", "decode"]]):
        found = by_rank[rank]
        stages, steps = only(found, STAGE), only(found, STEP)
        requests = [(span.about["request"], span.name) for span in stages if "request" in span.about]
        assert requests == [(number, stage) for number in range(len(PROMPTS)) for stage in stages_of]
        assert {"load", LINK} == {span.name for span in stages if "request" not in span.about}
        assert [span.name for span in steps] == ["step 1", "step 2"] * len(PROMPTS)
        assert all(lies_in(step, [s for s in stages if s.name == "denoise"]) for step in steps)
        assert all(lies_in(layer, steps) for layer in only(found, LAYER))
        assert not any(span.about.get("unfinished") for span in found)
        # Each message ends in the wait for it, and those of a step are waited for within it.
        exchanges = only(found, EXCHANGE)
        assert all(any(w.begin <= m.end <= w.end for w in exchanges) for m in only(found, MESSAGE))
        in_steps = [wait for wait in exchanges if any(s.begin <= wait.begin < s.end for s in steps)]
        assert in_steps and all(lies_in(wait, steps) for wait in in_steps)
        # Waits for other stages are not part of a stage.
        assert not any(lies_in(wait, stages) for wait in only(found, CHANNEL))
    waits = [span.name for span in only(by_rank[0], CHANNEL)]
    assert waits.count("wait for rank 1") == len(PROMPTS)  # for the encoded prompts


def test_stages_come_in_the_simulated_order(traced: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = command(
        tmp_path, "generate", "--prompts-file", "prompts.txt", "--model", str(model), "--ranks", "2",
        "--placement", "denoise=0 decode=1", "--trace", "t.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path, placement in (
        (traced, Placement(ranks=2, encode=(1,), denoise=(0, 1), decode=(1,))),
        (tmp_path / "t.json", Placement(ranks=2, denoise=(0,), decode=(1,))),
    ):
        simulated = sorted(
            simulate(placement, len(PROMPTS), {"encode": 0.1, "denoise": 1.0, "decode": 0.5}),
            key=lambda span: span.start,
        )
        for rank, traced_spans in read_trace(path).items():
            found = [(s.name, s.about["request"]) for s in only(traced_spans, STAGE) if "request" in s.about]
            assert found == [(span.stage, span.request) for span in simulated if rank in span.ranks]


def test_bytes_are_those_of_the_exchange(traced: Path, model: Path) -> None:
    spec = read_spec(model)
    config = json.loads((model / "transformer" / "config.json").read_text())
    heads, depth, branches = config["num_attention_heads"], config["attention_head_dim"], 2
    shares = Shares.equal(spec.tokens(9, 48, 48), heads, 2)
    patch = config["out_channels"] * 4
    for rank, found in read_trace(traced).items():
        transport = Transport(None)
        transport.rank, transport.num_ranks = rank, 2
        attention = UlyssesExchange(shares, transport).bytes_sent(rank, branches, depth, itemsize=4)
        held = [[replace(shares.tokens_of(one), last_head=1)] for one in range(2)]
        everywhere = [[Box(0, 1, 0, shares.num_tokens)]] * 2
        gather = Redistribution(held, everywhere, transport).elements_sent(rank) * branches * patch * 4
        a_step = config["num_layers"] * attention + gather
        for step in only(found, STEP):
            within = [m for m in only(found, MESSAGE) if step.begin <= m.begin < step.end]
            assert sum(message.about["sent"] for message in within) == a_step
        layers = len(only(found, LAYER))
        assert layers == len(PROMPTS) * STEPS * branches * config["num_layers"]


def test_the_summary_of_the_run(traced: Path) -> None:
    done = command(traced.parent, "trace", "summary", "t.json")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["rank", "preparing", "busy", "communicating", "idle", "sent", "hidden"]
    assert [row.split()[0] for row in rows] == ["0", "1"]
    assert "unknown" not in done.stdout
    as_json = command(traced.parent, "trace", "summary", "t.json", "--json").stdout.splitlines()
    totals = []
    for rank in map(json.loads, as_json):
        assert 0 <= rank["exposed"] <= rank["alone"] and 0 <= rank["hidden"] <= 1
        assert min(rank[part] for part in ("preparing", "busy", "communicating")) > 0
        totals.append(sum(rank[part] for part in ("preparing", "busy", "communicating", "idle")))
    assert totals[0] == pytest.approx(totals[1])


def test_torchrun_is_refused(model: Path, tmp_path: Path) -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = command(tmp_path, "generate", "a", "--model", str(model), "--trace", "t.json", **torchrun)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "leave torchrun, or --trace, out" in done.stderr


def test_without_the_option_nothing_is_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = command(
        tmp_path, "generate", "a", "--model", str(model), "-o", "a.mp4", TMPDIR=str(tmp_path / "tmp")
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "tmp"]
    assert not [path for path in tmp_path.rglob("*") if "trace" in path.name or path.suffix == ".jsonl"]


def test_one_process_has_a_trace_too(model: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "generate", "a", "--model", str(model), "-o", "a.mp4", "--trace", "t.json")
    assert done.returncode == 0, done.stderr
    (found,) = read_trace(tmp_path / "t.json").values()
    assert [span.name for span in only(found, STAGE)] == ["load", "encode", "denoise", "decode"]
    assert [span.name for span in only(found, STEP)] == ["step 1", "step 2"]
    assert not only(found, LAYER)
    assert command(tmp_path, "trace", "summary", "t.json").stdout.splitlines()[1].split()[-1] == "-"


def test_a_killed_rank_leaves_its_trace(model: Path, tmp_path: Path) -> None:
    steps = ["--num-inference-steps", "40", "--checkpoint-steps", "100"]
    ranks = ["--ranks", "2", "--attention", "ulysses", "--trace", "t.json", "--latents", "l.safetensors"]
    run = Command(tmp_path, "generate", "a", "--model", str(model), *steps, *ranks)
    assert run.until(lambda told: told.get("done", 0) >= 3)
    run.ranks()[1].kill()
    run.end_well()
    for rank, found in read_trace(tmp_path / "t.json").items():
        # The rank that was killed, and the one that replaced it.
        denoised = [span for span in found if span.name == "denoise"]
        broken, whole = sorted(denoised, key=lambda span: span.begin)
        assert broken.about == {"request": 0} | ({"unfinished": True} if rank == 1 else {})
        within = [span for span in found if span.begin >= broken.begin and span.end <= broken.end]
        assert len(only(within, STEP)) >= 3
        assert broken.end == max(span.end for span in within)
        assert whole.about == {"request": 0}
        within = [span for span in found if span.begin >= whole.begin and span.end <= whole.end]
        assert len(only(within, STEP)) == 40


def slow_to_take(world: World, folder: Path) -> None:
    """Send five messages, of which two may be in flight, to a rank that receives one every 0.2 s."""
    channel = Channel(world, 0, [1], depth=2)
    with recording(Tracing(folder), world.rank):
        for number in range(5):
            if world.rank == 0:
                channel.send(torch.full([1000], float(number)))
            else:
                time.sleep(0.2)
                assert channel.receive([1000], torch.float32, torch.device("cpu"))[0] == number
        channel.close()


def test_back_pressure_is_seen(tmp_path: Path) -> None:
    run_world(slow_to_take, 2, tmp_path)
    merge(tmp_path, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    waits = [event for event in events if event.get("cat") == CHANNEL and event["pid"] == 0]
    assert [(wait["name"], wait["args"]) for wait in waits[:3]] == [
        ("wait until taken", {"ready": 3, "by": [1]})
    ] * 3
    # The last of five is sent once the third is received, after 0.6 s, less the time between their starts.
    assert sum(wait["dur"] for wait in waits[:3]) > 0.4e6
    assert len([event for event in events if event["name"] == "wait for rank 0"]) == 5
