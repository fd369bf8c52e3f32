"""A long-lived engine: jobs arrive at any time, end independently, and survive their ranks."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import paradit
import warm
from made_videos import latents_in
from paradit import Engine, InputError, JobCancelled, JobError, Placement, Request
from paradit.engine.engine_job import EngineJob
from paradit.engine.events import Doing, Finished, Restarted
from paradit.engine.launchers.local import LocalLauncher
from paradit.progress import Event, StageStarted, Stepped
from patience import PATIENCE, wait_for
from tiny import save_folder

TWO = Placement(ranks=2, attention="ulysses")
STEPS = {0: 6, 1: 1000, 2: 6, 4: 40, 6: 6, 8: 40, 9: 6}
"""Denoising steps of each job, by its seed."""
"""Seconds to wait for a result: ten times what it takes on a busy machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 3, "fps": 8}
    return save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny-wan", heads=2, **sizes)


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the process ids of the ranks, in the order in which they start."""
    found: list[int] = []
    start = LocalLauncher.start

    def watched(self: LocalLauncher, *arguments: Any, **options: Any) -> Any:
        seats = start(self, *arguments, **options)
        found.extend(process.pid or 0 for process in self._processes)
        return seats

    monkeypatch.setattr(LocalLauncher, "start", watched)
    return found


def submitted(engine: Engine, folder: Path, seed: int, steps: int = 3, **fields: Any) -> EngineJob:
    request = Request(prompt=f"prompt {seed}", seed=seed, num_inference_steps=steps, **fields)
    latents = folder / f"{seed}.safetensors"
    return engine.submit(request, folder / f"{seed}.mp4", latents=latents, checkpoint_steps=1)


def until(job: EngineJob, kind: type[Event], stage: str = "denoise") -> None:
    """Wait until a job emits an event of a class, in a stage."""
    seen = []
    for event in job.events():
        seen.append(event)
        if isinstance(event, kind) and getattr(event, "stage", "") == stage:
            return
    raise AssertionError(f"{job.request.prompt}: no {kind.__name__} in {seen}")


def test_ranks_start_and_load_once_and_again_after_one_has_died(
    model: Path, tmp_path: Path, pids: list[int]
) -> None:
    told: list[Event] = []

    def loads() -> int:
        return sum(isinstance(event, Doing) and event.stage == "load" for event in told)

    with Engine(model, TWO, emit=told.append) as engine:
        for seed in range(5):
            submitted(engine, tmp_path, seed).result(PATIENCE)
        assert (len(pids), loads()) == (2, 2)
        os.kill(pids[1], signal.SIGKILL)
        wait_for(lambda: any(isinstance(event, Restarted) for event in told))  # noticed, though idle
        jobs = [submitted(engine, tmp_path, seed) for seed in range(5, 8)]
        assert [job.result(PATIENCE)["seed"] for job in jobs] == [5, 6, 7]
        assert (len(pids), loads()) == (4, 4)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not (tmp_path / "paradit-runs").exists()


def test_jobs_end_alone_and_outlive_their_ranks(model: Path, tmp_path: Path, pids: list[int]) -> None:
    """Three of ten jobs are cancelled, one fails, ranks are killed twice; six equal those run alone."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    good = (0, 2, 4, 6, 8, 9)
    with Engine(model, TWO) as engine:
        for seed in good:
            submitted(engine, alone, seed, STEPS[seed]).result(PATIENCE)
    del pids[:]
    with Engine(model, TWO) as engine:

        def submit(seed: int, folder: Path = together, **fields: Any) -> EngineJob:
            return submitted(engine, folder, seed, STEPS.get(seed, 6), **fields)

        jobs = [submit(0), submit(1)]
        until(jobs[1], Stepped)
        jobs[1].cancel()  # while it is denoised
        jobs += [submit(2), submit(3)]
        jobs[3].cancel()  # in the queue
        jobs += [submit(4)]
        until(jobs[4], Stepped)
        os.kill(pids[1], signal.SIGKILL)
        jobs += [submit(5, num_frames=81), submit(6)]
        until(jobs[5], StageStarted, "decode")
        jobs[5].cancel()  # while it is decoded
        (together / "gone").mkdir()
        jobs += [submit(7, together / "gone"), submit(8)]
        (together / "gone").rename(together / "elsewhere")
        until(jobs[8], Stepped)
        os.kill(pids[2], signal.SIGKILL)
        jobs += [submit(9)]
        for job in jobs:
            with suppress(JobError):
                job.result(PATIENCE)
    statuses = [job.status for job in jobs]
    assert [statuses[seed] for seed in good] == ["done"] * 6
    assert [statuses[seed] for seed in (1, 3, 5)] == ["cancelled"] * 3
    assert statuses[7] == "failed"
    with pytest.raises(JobError, match="'prompt 7': No such file or directory"):
        jobs[7].result()
    with pytest.raises(JobCancelled):
        jobs[1].result()
    assert len(pids) == 6
    for seed in good:
        assert torch.equal(latents_in(together, seed), latents_in(alone, seed))
    assert not (together / "1.mp4").exists()
    kept = [path.name for path in (together / "paradit-runs").glob("prompt-1-*/*.pt")]
    assert kept == ["00000.step.pt"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_engines_refuse_and_that_requests_may_differ(model: Path, tmp_path: Path, ranks: int) -> None:
    placement = Placement(ranks=ranks, attention="ulysses") if ranks > 1 else None
    with Engine(model, placement) as engine:
        job = submitted(engine, tmp_path, 0)
        for fields, said in (
            ({"width": 50}, "size must be multiples of 16"),
            ({"dtype": "bf16"}, "the engine's weights are in the usual dtype"),
            ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ):
            with pytest.raises(InputError, match=said):
                engine.submit(Request(prompt="a", **fields), tmp_path / "x.mp4")
        with pytest.raises(InputError, match=r"output .* is being written"):
            engine.submit(Request(prompt="a"), tmp_path / "0.mp4")
        other = submitted(engine, tmp_path, 1, width=32, num_frames=5, guidance_scale=1.0)
        assert other.result(PATIENCE)["width"] == 32
        assert job.status == "done"
        numbers = [event.number for event in job.events()]
        assert numbers == sorted(set(numbers))
        assert isinstance(list(job.events())[-1], Finished)
        assert len(list(other.frames())) == 5
        assert not list(job.events(after=numbers[-1]))
    with pytest.raises(RuntimeError, match="closed"):
        submitted(engine, tmp_path, 2)


def test_fifty_listeners_cost_no_threads(model: Path, tmp_path: Path) -> None:
    async def last(job: EngineJob) -> Event:
        async for event in job.events():
            found = event
        return found

    async def follow(engine: Engine) -> None:
        job = submitted(engine, tmp_path, 0)
        listeners = [asyncio.create_task(last(job)) for _ in range(50)]
        await asyncio.sleep(0)
        before = threading.active_count()
        assert before < 20
        for found in await asyncio.gather(*listeners):
            assert isinstance(found, Finished)

    with Engine(model) as engine:
        asyncio.run(follow(engine))


def test_idle_ranks_cost_nothing(model: Path, tmp_path: Path, pids: list[int]) -> None:
    with Engine(model, TWO) as engine:
        submitted(engine, tmp_path, 0).result(PATIENCE)
        processes = [psutil.Process(pid) for pid in (*pids, os.getpid())]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        time.sleep(6.0)
        after = [sum(process.cpu_times()[:2]) for process in processes]
    # A hundredth of a core is 0.06 s; the clock counts hundredths.
    assert max(then - now for now, then in zip(before, after, strict=True)) < 0.3


SCRIPT = """
import sys, time
from paradit import Engine, Placement, Request
from paradit.engine.launchers.local import LocalLauncher

start = LocalLauncher.start
def watched(self, *arguments, **options):
    seats = start(self, *arguments, **options)
    print(*(process.pid for process in self._processes), flush=True)
    return seats
LocalLauncher.start = watched
engine = Engine(sys.argv[1], Placement(ranks=2))
job = engine.submit(Request(prompt="a", num_inference_steps=int(sys.argv[2])), "a.mp4")
print(job.result()["path"], flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("steps", [1, 1000])
def test_ranks_end_with_their_engine_s_process(model: Path, tmp_path: Path, steps: int) -> None:
    """Ranks end whether idle or at work; the script, which starts cold in one case, needs no main guard."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process: warm.Warm | subprocess.Popen[str]
    if steps == 1:
        source = str(Path(paradit.__file__).parent.parent)
        process = subprocess.Popen(
            [sys.executable, script, str(model), str(steps)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    else:
        process = warm.start([model, str(steps)], tmp_path, os.environ, script)
    assert process.stdout
    pids = [int(pid) for pid in process.stdout.readline().split()]
    if steps == 1:
        assert process.stdout.readline() == "a.mp4\n"
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert len(pids) == 2
    wait_for(lambda: not any(_lives(pid) for pid in pids))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


INTERRUPTED = """
import signal, sys
from paradit import Engine, Placement, Request

signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background
with Engine(sys.argv[1], Placement(ranks=int(sys.argv[2]))) as engine:
    for name in ("a", "b"):
        engine.submit(Request(prompt="a", num_inference_steps=1000), f"{name}.mp4")
    print("waits", flush=True)
"""
LEFT = """
import sys
from paradit import Engine, Placement, Request

engine = Engine(sys.argv[1], Placement(ranks=int(sys.argv[2])))
print(engine.submit(Request(prompt="a", num_inference_steps=1), "a.mp4").result()["path"], flush=True)
engine.submit(Request(prompt="b", num_inference_steps=1000), "b.mp4")
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("program", [INTERRUPTED, LEFT])
def test_engines_that_are_interrupted_or_left_open_end(
    model: Path, tmp_path: Path, program: str, ranks: int
) -> None:
    """Ctrl-C while `with` waits cancels the jobs; so does the end of a script that closes no engine."""
    script = tmp_path / "script.py"
    script.write_text(program)
    process = warm.start([model, str(ranks)], tmp_path, os.environ, script)
    assert process.stdout
    process.stdout.readline()
    if program == INTERRUPTED:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGINT), errors
    assert ("KeyboardInterrupt" in errors) == (program == INTERRUPTED), errors
    assert {path.name for path in tmp_path.iterdir()} <= {"script.py", "a.mp4", "paradit-runs"}


def test_readers_that_fail_end_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda about: reported.append(str(about.exc_value)))

    def emit(event: Event) -> None:
        if isinstance(event, Stepped):
            raise ValueError("a reader's own")
        if isinstance(event, Finished) and event.job == 0:
            jobs.append(submitted(engine, tmp_path, 1))

    with Engine(model, emit=emit) as engine:
        jobs = [submitted(engine, tmp_path, 0)]
        jobs[0].result(PATIENCE)
        wait_for(lambda: len(jobs) == 2)
        assert jobs[1].result(PATIENCE)["seed"] == 1
    assert set(reported) == {"a reader's own"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"placement": 3}, "placement must be a Placement or 'auto', got 3"),
        ({"emit": 3}, "emit must be a function that takes an event, got 3"),
        ({"placement": "auto", "plan_for": ["a"]}, "request must be a Request, got 'a'"),
        ({"placement": "auto", "plan_for": Request(prompt="a")}, "plan_for must be a list"),
    ],
)
def test_engines_that_cannot_be(model: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Engine(model, **options)


def test_frames_of_a_folder(model: Path, tmp_path: Path) -> None:
    with Engine(model) as engine:
        job = engine.submit(Request(prompt="a", num_inference_steps=1, num_frames=5), tmp_path / "made")
        assert [frame.shape for frame in job.frames()] == [(48, 48, 3)] * 5
        with pytest.raises(InputError, match="request must be a Request"):
            engine.submit("a", tmp_path / "b.mp4")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="timeout must be a finite number above 0, got nan"):
            job.result(math.nan)
