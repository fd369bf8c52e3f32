"""Programs of ranks, played in time over resources that each do one thing at a time.

A rank computes, posts messages, and waits for them. A message starts when all ranks that take part have
posted it, and keeps each of its resources (a port, a shared host) busy for a while of its own, after
whatever that was given before. Deterministic: no clock, no random numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True)
class Compute:
    """Keeps the rank busy."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Message:
    """What ranks send each other at once."""

    name: str
    ranks: tuple[int, ...]
    """Who takes part."""
    busy: Mapping[str, float]
    """Seconds for which each resource is occupied."""
    latency: float
    table: Sequence[Sequence[float]] = field(default=(), repr=False)
    """Bytes from the i-th of the ranks to the j-th."""
    posting: float = 0.0
    """Seconds for which posting it keeps a rank, but no longer than it has computed since the last one: the
    thread that sends and the one that computes have equal rights to a core."""

    @property
    def seconds(self) -> float:
        """For which it travels, if nothing is in its way."""
        return max(self.busy.values(), default=0.0)


@dataclass(frozen=True)
class Post:
    """Begin a message; `key` says which of the messages of its kind."""

    key: Hashable
    message: Message


@dataclass(frozen=True)
class Wait:
    """Until a message that was posted is there."""

    key: Hashable
    same_turn: bool = False
    """Whether this wait belongs to the one before it: no other stream's turn comes between them."""


Step = Compute | Post | Wait
Program = Iterable[Step]


@dataclass(frozen=True)
class Use:
    """A resource, a rank's processor among them, occupied from begin to end."""

    resource: str
    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Sent:
    """A message on its way, from when all have posted it until it is there."""

    message: Message
    begin: float
    end: float


@dataclass(frozen=True)
class Played:
    """What came of programs."""

    ends: Sequence[float]
    """When each rank's program was over."""
    computing: Sequence[float]
    """Seconds that each rank computed."""
    uses: list[Use] = field(repr=False)
    sent: list[Sent] = field(repr=False)
    waits: list[Use] = field(repr=False)
    """When ranks were waiting for messages."""

    @property
    def seconds(self) -> float:
        return max(self.ends)


def play(programs: Sequence[Program]) -> Played:
    """One program for each rank, 0 and on, from time 0. Raises RuntimeError where ranks wait for ever."""
    running = [_posting(program) for program in programs]
    ends, computing = [0.0] * len(running), [0.0] * len(running)
    free: dict[str, float] = {}
    posted: dict[Hashable, int] = {}
    arrives: dict[Hashable, float] = {}
    waiting: dict[Hashable, list[int]] = {}
    uses: list[Use] = []
    sent: list[Sent] = []
    waits: list[Use] = []
    since: dict[int, float] = {}
    order = count()
    events = [(0.0, next(order), rank) for rank in range(len(running))]

    def start(post: Post, now: float) -> None:
        last = now
        for resource, seconds in post.message.busy.items():
            begin = max(now, free.get(resource, 0.0))
            free[resource] = begin + seconds
            last = max(last, begin + seconds)
            uses.append(Use(resource, post.message.name, begin, begin + seconds))
        arrives[post.key] = last + post.message.latency
        sent.append(Sent(post.message, now, arrives[post.key]))
        for rank in waiting.pop(post.key, []):
            heapq.heappush(events, (arrives[post.key], next(order), rank))

    while events:
        now, _, rank = heapq.heappop(events)
        ends[rank] = now
        if (began := since.pop(rank, now)) < now:
            waits.append(Use(f"rank {rank}", "wait for messages", began, now))
        for step in running[rank]:
            if isinstance(step, Post):
                posted[step.key] = posted.get(step.key, 0) + 1
                if posted[step.key] == len(step.message.ranks):
                    start(step, now)
                continue
            if isinstance(step, Compute):
                computing[rank] += step.seconds
                uses.append(Use(f"rank {rank}", step.name, now, now + step.seconds))
                heapq.heappush(events, (now + step.seconds, next(order), rank))
            elif step.key not in arrives:
                since[rank] = now
                waiting.setdefault(step.key, []).append(rank)
            elif arrives[step.key] > now:
                since[rank] = now
                heapq.heappush(events, (arrives[step.key], next(order), rank))
            else:
                continue
            break
    if waiting:
        raise RuntimeError(f"ranks wait for messages that never start: {waiting}")
    return Played(ends, computing, uses, sent, waits)


def _posting(program: Program) -> Iterator[Step]:
    """The program, with what posting takes."""
    computed = 0.0
    for step in program:
        if isinstance(step, Compute):
            computed += step.seconds
        if isinstance(step, Post) and (taken := min(step.message.posting, computed)):
            computed = 0.0
            yield Compute("begin messages", taken)
        yield step


def interleaved(streams: Sequence[Iterable[Step]], lag: int = 0) -> Generator[Step, None, None]:
    """Streams of one rank side by side, in the order of `parallel.forward.run_interleaved`."""
    running = dict(enumerate(map(iter, streams)))
    waits: dict[int, Wait] = {}
    for turn in count():
        if not running:
            return
        for index, stream in list(running.items()):
            if turn < index * lag:
                continue
            if index in waits:
                yield waits.pop(index)
            for step in stream:
                if isinstance(step, Wait) and not step.same_turn:
                    waits[index] = step
                    break
                yield step
            else:
                del running[index]
