"""Discrete-event simulator of ranks that compute, and exchange messages over links.

Each rank runs a program: it computes, posts messages (begins to send or receive them), and waits for them. A
message is any exchange of data between two or more ranks. It starts once all of its ranks have posted it. It
then occupies each of its resources, such as a port or a shared host, for a given time; a resource serves
messages in the order in which they start. The simulation is deterministic: no clock, no random numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True)
class Compute:
    """Step of a simulated rank's program that computes for some seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Message:
    """Exchange of data among two or more ranks, such as an all-to-all; simulated as a single message."""

    name: str
    ranks: tuple[int, ...]
    """Ranks that take part in the exchange."""
    busy: Mapping[str, float]
    """Mapping from the name of each resource that the exchange uses, such as a rank's port, to the seconds
    for which the exchange occupies it."""
    latency: float
    table: Sequence[Sequence[float]] = field(default=(), repr=False)
    """Matrix of the bytes sent: row i, column j holds what the i-th of `ranks` sends to the j-th."""
    posting: float = 0.0
    """Seconds of computing that a rank loses when it posts (begins) the exchange. It loses at most as many
    seconds as it has computed since it posted the exchange before."""

    @property
    def seconds(self) -> float:
        """Seconds that the exchange takes, without its latency, if no other exchange uses its links."""
        return max(self.busy.values(), default=0.0)


@dataclass(frozen=True)
class Post:
    """Step of a simulated rank's program that posts (begins) a message.

    The message starts when all of its ranks have posted it under the same key.
    """

    key: Hashable
    message: Message


@dataclass(frozen=True)
class Wait:
    """Step of a simulated rank's program that waits until the message with a given key has arrived."""

    key: Hashable
    same_turn: bool = False
    """Whether the rank begins this wait at once. If False, the rank first continues its other streams of
    work, such as another guidance branch."""


Step = Compute | Post | Wait
Program = Iterable[Step]


@dataclass(frozen=True)
class Use:
    """Interval of simulated time in which a resource, such as a link's port or a processor, is occupied."""

    resource: str
    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Sent:
    """Record of a simulated message: when all of its ranks had posted it, and when it arrived."""

    message: Message
    begin: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """Result of simulating the ranks' programs: when each rank computed, waited and exchanged messages."""

    ends: Sequence[float]
    """Times at which the ranks' programs ended, one per rank, in seconds from the simulation's start."""
    computing: Sequence[float]
    """Seconds of computing, one number per rank."""
    uses: list[Use] = field(repr=False)
    sent: list[Sent] = field(repr=False)
    waits: list[Use] = field(repr=False)
    """Intervals in which ranks waited for messages."""

    @property
    def seconds(self) -> float:
        return max(self.ends)


class _Links:
    """Messages of a simulation: which ranks have posted them, when they arrive, and what they occupy."""

    def __init__(self, uses: list[Use]) -> None:
        """Begin without messages. uses: list to which the intervals are added in which links are occupied."""
        self.arrives: dict[Hashable, float] = {}
        """Time of arrival of each message that has started."""
        self.sent: list[Sent] = []
        self._uses = uses
        self._posted: dict[Hashable, int] = {}
        self._free: dict[str, float] = {}
        """Time from which each resource, such as a port, is free."""

    def post(self, post: Post, now: float) -> bool:
        """Take note that a rank posts a message; return whether it starts now, because it is the last one."""
        posted = self._posted[post.key] = self._posted.get(post.key, 0) + 1
        if posted != len(post.message.ranks):
            return False
        # Each resource is occupied as soon as it is free; the message arrives when the last one is done.
        last = now
        for resource, seconds in post.message.busy.items():
            begin = max(now, self._free.get(resource, 0.0))
            self._free[resource] = begin + seconds
            last = max(last, begin + seconds)
            self._uses.append(Use(resource, post.message.name, begin, begin + seconds))
        self.arrives[post.key] = last + post.message.latency
        self.sent.append(Sent(post.message, now, self.arrives[post.key]))
        return True


def simulate(programs: Sequence[Program]) -> Simulation:
    """Simulate one program per rank, rank 0 first, from time 0. Raises RuntimeError if ranks deadlock."""
    running = [_posting(program) for program in programs]
    ends, computing = [0.0] * len(running), [0.0] * len(running)
    waiting: dict[Hashable, list[int]] = {}
    """Ranks that wait for messages that have not started."""
    since: dict[int, float] = {}
    uses: list[Use] = []
    waits: list[Use] = []
    links = _Links(uses)
    order = count()  # orders events of equal time by when they were added, so that runs are repeatable
    events = [(0.0, next(order), rank) for rank in range(len(running))]

    def resume(rank: int, time: float) -> None:
        heapq.heappush(events, (time, next(order), rank))

    while events:
        now, _, rank = heapq.heappop(events)
        ends[rank] = now
        if (began := since.pop(rank, now)) < now:
            waits.append(Use(f"rank {rank}", "wait for messages", began, now))
        # Run the rank's program until a step takes time; an event then resumes it.
        for step in running[rank]:
            if isinstance(step, Post):
                if links.post(step, now):
                    for waiter in waiting.pop(step.key, []):
                        resume(waiter, links.arrives[step.key])
                continue
            if isinstance(step, Compute):
                computing[rank] += step.seconds
                uses.append(Use(f"rank {rank}", step.name, now, now + step.seconds))
                resume(rank, now + step.seconds)
            elif step.key not in links.arrives:  # not started yet: the rank is resumed when it starts
                since[rank] = now
                waiting.setdefault(step.key, []).append(rank)
            elif links.arrives[step.key] > now:
                since[rank] = now
                resume(rank, links.arrives[step.key])
            else:
                continue
            break
    if waiting:
        raise RuntimeError(f"ranks wait for messages that never start: {waiting}")
    return Simulation(ends, computing, uses, links.sent, waits)


def _posting(program: Program) -> Iterator[Step]:
    """Yield a rank's program, with computing steps added for the time that posting messages takes."""
    computed = 0.0
    for step in program:
        if isinstance(step, Compute):
            computed += step.seconds
        if isinstance(step, Post) and (taken := min(step.message.posting, computed)):
            computed = 0.0  # the next post can delay only what is computed after this one
            yield Compute("begin messages", taken)
        yield step


def interleaved(streams: Sequence[Iterable[Step]], lag: int = 0) -> Generator[Step, None, None]:
    """Merge a rank's streams of work into one program, which changes to another stream at each wait.

    A stream is, for example, the work for one guidance branch. Streams take turns: in each turn, every stream
    runs up to its next wait. The order equals that of `parallel.run_blocks.run_interleaved`. lag: number of
    turns by which each stream starts after the previous stream.
    """
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
            else:  # no further wait: the stream has ended
                del running[index]
