"""Traces of real runs: what every rank did and when, in one file, and its summary."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import warm
from paradit.config.placement import Placement
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.redistribution import Redistribution
from paradit.distributed.shares import Box, Shares
from paradit.distributed.transport import Transport
from paradit.models.spec import read_spec
from paradit.scheduling.balance import simulate
from paradit.trace.spans import CHANNEL, EXCHANGE, LAYER, LINK, MESSAGE, STAGE, STEP
from paradit.trace.summary import read_trace
from runs import Command
from tiny import save_folder
from trace_checks import check_rows, lies_in, only

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS, PROMPTS = 2, ["a red circle", "a blue square", "a green ring"]


def command(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return warm.run(arguments, folder, ENV | env)


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
    assert "--trace does not work under torchrun" in done.stderr


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
