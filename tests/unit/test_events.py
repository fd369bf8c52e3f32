"""Events: every reader knows every class of them, and a job's log keeps the newest ones, numbered."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.progress import Task, TaskID

from paradit.cli import reporters
from paradit.cli.bars import RateColumn
from paradit.cli.reporters import JsonReporter, Reporter, SilentReporter, TerminalReporter
from paradit.engine.events import EVENTS, Began, Doing, Failed, Log, Missed, Wrote
from paradit.progress import Event, StageEnded, StageStarted, Stepped
from sample_events import sample

READERS = [Reporter, SilentReporter, JsonReporter, TerminalReporter]


@pytest.mark.parametrize("kind", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_knows_every_event(reader: Callable[[], Reporter], kind: type[Event]) -> None:
    class Unknown(Event):
        pass

    with reader() as shown:
        shown.emit(sample(kind))
        if reader is not SilentReporter:
            with pytest.raises(AssertionError):
                shown.emit(Unknown())


def test_every_class_of_events_is_among_those_that_readers_know() -> None:
    def below(kind: type[Event]) -> set[str]:
        return {kind.__name__}.union(*(below(each) for each in kind.__subclasses__()))

    assert below(Event) - {"Unknown"} == {*EVENTS, "Event", "StageEvent"}


def test_lines_have_the_request_s_number_if_several_run(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter()
    for job in range(2):
        report.emit(Began(job=job, count=2, prompt=f"prompt {job}"))
        report.emit(StageStarted(job=job, stage="denoise", total=4))
    report.emit(StageEnded(job=0, stage="denoise", seconds=2.0))
    report.emit(Failed(job=1, count=2, message="why"))
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] prompt 0",
        "[1/2] denoise: 4 steps",
        "[2/2] prompt 1",
        "[2/2] denoise: 4 steps",
        "[1/2] denoise: done in 2.0 s",
        "paradit: failed: [2/2] why",
    ]
    assert report.failures == 1


def test_steps_in_json_have_their_stage_s_total(capsys: pytest.CaptureFixture[str]) -> None:
    report = JsonReporter()
    report.emit(StageStarted(job=1, stage="denoise", total=4))
    report.emit(StageStarted(job=2, stage="denoise", total=9))
    report.emit(Stepped(job=1, stage="denoise", done=3))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"event": "step", "stage": "denoise", "done": 3, "total": 4, "resumed": 0}


def test_the_rate_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(reporters, "time", SimpleNamespace(monotonic=lambda: clock.now))
    report = Reporter()
    report.emit(StageStarted(stage="denoise", total=50))
    for clock.now, done in ((10.0, 40), (20.0, 42)):
        report.emit(Stepped(stage="denoise", done=done, resumed=40))
    assert capsys.readouterr().err.splitlines()[1:] == ["denoise: 42/50, 0.1 steps/s, 80.0 s left"]


def test_the_rate_of_a_bar_is_that_of_this_process() -> None:
    task = Task(TaskID(0), "denoise", total=50, completed=42, _get_time=lambda: 20.0, fields={"resumed": 40})
    task.start_time = 0.0
    assert RateColumn().render(task).plain == "20.0 s, 0.1 steps/s, 80.0 s left"


def test_a_stage_that_begins_again_has_one_bar() -> None:
    with TerminalReporter() as report:
        for total in (3, 5):
            report.emit(StageStarted(stage="decode", total=total))
            report.emit(Stepped(stage="decode", done=1))
        assert report._bars is not None
        assert [(task.total, task.completed) for task in report._bars.tasks] == [(5, 1)]


def test_a_log_keeps_the_newest_progress_and_says_what_is_missed() -> None:
    log = Log(kept=4)
    log.add(Doing(job=0, stage="denoise"))
    for done in range(1, 100):
        log.add(Stepped(job=0, stage="denoise", done=done))
        log.add(Wrote(job=0, num_frames=done))
    assert [type(event) for event in log.since(0)] == [Doing, Stepped, Wrote]
    assert [event.number for event in log.since(0)] == [1, 198, 199]
    assert log.since(198) == [Wrote(job=0, num_frames=99, number=199)]
    for _ in range(3):
        log.add(Doing(job=0, stage="decode"))
    missed, *rest = log.since(0)
    assert isinstance(missed, Missed)
    assert missed.count == 198
    assert [event.number for event in rest] == [199, 200, 201, 202]
    assert log.since(198) == rest
