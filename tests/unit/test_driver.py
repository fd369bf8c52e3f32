"""Driver of scripted ranks: what it takes for a failure, and what it does then."""

import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from messages import says
from paradit.config.errors import RankError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.engine.channel import EVENT, Message
from paradit.engine.driver import FAILURES, Driver
from paradit.engine.events import Cancelled, Doing, Failed, Finished, Restarted
from paradit.engine.job import Job, Run
from paradit.engine.run import order_of
from paradit.engine.run_folder import RunFolder
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.progress import Event, Progress, StageStarted
from paradit.stopping import Interrupted, Stop

Said = list[tuple[int, Message]]


def event(told: Event) -> Message:
    return EVENT, (type(told).__name__, vars(told))


DENOISING: Said = [
    (0, event(Doing(job=1, stage="denoise"))),
    (0, event(StageStarted(job=1, stage="denoise", total=9))),
    (1, event(Doing(job=1, stage="denoise"))),
]
DIED: Said = [(1, ("ended", ("ended by SIGKILL",)))]
DONE: Said = [
    *((0, event(Finished(job=number, result={}))) for number in range(3)),
    (0, ("done", ())),
    (1, ("done", ())),
]


class Script:
    """Ranks with scripted messages, the last of which is repeated forever."""

    def __init__(self, said: list[Said]) -> None:
        self.said, self.ended, self.are_replaced = said, False, True
        self.told: list[tuple[int, str]] = []
        """Messages that were sent to single ranks."""
        self.told_all: list[tuple[str, Any]] = []
        self.lines: list[str] = []
        """Lines of the second rank's log."""

    @property
    def numbers(self) -> list[int]:
        """Numbers of the orders that were sent to all ranks."""
        return [about["number"] for word, about in self.told_all if word == "order"]

    def log(self, rank: int) -> list[str]:
        return self.lines if rank == 1 else []

    def hear(self, timeout: float) -> Said:  # noqa: ARG002
        time.sleep(0.02)
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]

    def send_to(self, rank: int, word: str) -> None:
        self.told.append((rank, word))

    def tell_all(self, word: str, about: Any = None) -> None:
        self.told_all.append((word, about))

    def end(self) -> None:
        self.ended = True


class Kept(Progress):
    def __init__(self) -> None:
        super().__init__(self.hear)
        self.said: list[tuple[str, Any]] = []

    def hear(self, event: Event) -> None:
        match event:
            case Failed():
                self.said.append(("failed", (event.job, event.count, event.message)))
            case Restarted():
                self.said.append(("restarted", event.message))


class Driven:
    """A run of three requests on two scripted ranks; each script is a world that replaces the last."""

    def __init__(self, folder: Path, *worlds: list[Said], stop: Stop | None = None) -> None:
        spec = read_spec(find_model("shapes"))
        request = resolve(Request(prompt="a red circle"), spec)
        jobs = [
            Job(request=request, output=str(folder / f"{index}.mp4"), latents=None, index=index, count=3)
            for index in range(3)
        ]
        self.run = Run(model="shapes", jobs=tuple(jobs), placement=Placement(ranks=2), hang_limit=1.0)
        self.folder, self.report, self.stop = RunFolder.create(self.run), Kept(), stop or Stop()
        self.worlds = [Script(said) for said in worlds]
        self.left = list(self.worlds)

    def drive(self) -> list[tuple[str, Any]]:
        def start() -> Any:
            return self.left.pop(0)

        spec, placement, limit = read_spec(find_model("shapes")), self.run.placement, self.run.hang_limit
        driver = Driver(spec, placement, self.report.emit, start=start, stop=self.stop, hang_limit=limit)
        for job in self.run.jobs:
            driver.add(order_of(self.run, job, self.folder, job.index))
        driver.end()
        try:
            driver.run()
        finally:
            assert all(world.ended for world in self.worlds if world not in self.left)
        assert not self.left
        return self.report.said


def test_ranks_that_get_nowhere(tmp_path: Path) -> None:
    alive: Said = [(0, ("alive", ())), (1, ("alive", ()))]
    run = Driven(tmp_path, [DENOISING, alive], [DONE])
    ((event, message),) = run.drive()
    assert event == "restarted"
    first, second, then = message.splitlines()
    assert says(first, "rank 0 (denoise of request 2): no progress .. 1 s")
    assert says(second, "rank 1 (denoise of request 2): no progress .. 1 s")
    assert says(then, "failure 1 of 3 in request 2")
    assert run.worlds[0].told == [(0, "stacks"), (1, "stacks")]


def test_a_launcher_that_replaces_no_ranks(tmp_path: Path) -> None:
    run = Driven(tmp_path, [DENOISING, DIED])
    run.worlds[0].are_replaced = False
    with pytest.raises(RankError, match="ended by SIGKILL"):
        run.drive()


def test_a_rank_that_is_silent(tmp_path: Path) -> None:
    (_, message), *_ = Driven(tmp_path, [DENOISING, [(0, ("alive", ()))]], [DONE]).drive()
    assert says(message.splitlines()[0], "rank 1 (denoise of request 2): .. 1 s")


def test_a_rank_that_starts_slowly_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank is silent while it imports libraries; a message of any rank within the limit is enough."""
    looks = count()
    monkeypatch.setattr("paradit.engine.driver.time", SimpleNamespace(monotonic=lambda: next(looks) / 200))
    first: Said = [(0, event(Doing(stage="load")))]
    second: Said = [(1, ("alive", ()))]
    waits: list[Said] = [[(0, ("alive", ()))]] * 40
    assert Driven(tmp_path, [first, *waits, second, *waits, DONE]).drive() == []
    assert next(looks) / 200 > 1.2


def test_the_one_that_died_is_the_cause(tmp_path: Path) -> None:
    raised: Said = [(0, ("raised", ("Traceback\n  ...\nRuntimeError: connection closed by peer",)))]
    run = Driven(tmp_path, [DENOISING, raised, DIED, []], [DONE])
    run.worlds[0].lines = ["terminate called after throwing"]
    (_, message), *_ = run.drive()
    first, second, log, *_ = message.splitlines()
    assert says(first, "rank 0 (denoise of request 2): RuntimeError: connection closed by peer")
    assert says(second, "rank 1 (denoise of request 2): .. SIGKILL")
    assert log == "  | terminate called after throwing"


def test_a_request_is_given_up_after_three_failures(tmp_path: Path) -> None:
    fails = [[DENOISING, DIED, []] for _ in range(FAILURES)]
    run = Driven(tmp_path, *fails, [DONE])
    *_, (event, (index, count, message)) = run.drive()
    assert (event, index, count) == ("failed", 1, 3)
    assert "given up after 3 failures" in message
    assert "rank 1 (denoise of request 2): ended by SIGKILL" in message
    assert [world.numbers for world in run.worlds] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2]]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    run = Driven(tmp_path, [DENOISING, DIED, []], [DONE])
    run.folder.finish(run.run.jobs[0])
    Path(run.run.jobs[1].output).touch()
    run.folder.name_next(1, Path(run.run.jobs[1].output))  # as if killed just after the file got its name
    run.drive()
    assert run.worlds[1].numbers == [2]


def test_ranks_that_cannot_start(tmp_path: Path) -> None:
    raised: Said = [(0, ("raised", ("Traceback\nOSError: no such model",)))]
    with pytest.raises(RankError, match=r"rank 0 \(load\): Traceback\nOSError: no such model"):
        Driven(tmp_path, [raised, []]).drive()
    with pytest.raises(RankError, match=r"rank 1 \(load\): ended by SIGKILL"):
        Driven(tmp_path, *[[DIED, []] for _ in range(FAILURES)]).drive()


def test_a_stop_waits_for_the_step(tmp_path: Path) -> None:
    stop = Stop()
    stop.wanted = True
    run = Driven(tmp_path, [DENOISING, [], [], [(0, event(Cancelled(job=1)))], []], stop=stop)
    with pytest.raises(Interrupted):
        run.drive()
    cancelled = [("cancel", number) for number in range(3)]
    assert [told for told in run.worlds[0].told_all if told[0] == "cancel"] == cancelled
    assert run.report.said == []
