"""Attention co-processing: decode ranks that are idle share the attention (PipeDiT, arXiv 2511.12056).

They hold no tokens and no weights: a step's attention is the same exchange over more ranks. The first rank
that denoises leads. Before each step it sees who is idle, decides, and tells the others that denoise and
those who are to help in one small message, `Message`; inside a step nothing is decided. A decode rank that
waits for latents listens to it: it helps in a step, and listens again, until its latents come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache, lru_cache
from typing import Self

import torch
from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.join import join
from paradit.attention.local import sdpa
from paradit.attention.measured import MeasuredKernel
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope
from paradit.distributed.channel import Channel
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.timing import measure_link, now
from paradit.distributed.world import World
from paradit.models.protocol import Block, Tokens
from paradit.parallel.forward import run_interleaved
from paradit.scheduling.coprocess import HelperSpeed, Judge, helpers_work
from paradit.scheduling.stages import AHEAD

ALONE, HELP, MEASURE, LATENTS, END = range(5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is agreed for a step, with all that a helper must know of its attention; or what else comes."""

    kind: int = ALONE
    batch: int = 0
    num_tokens: int = 0
    num_replicated: int = 0
    num_heads: int = 0
    head_dim: int = 0
    sites: int = 0
    """Which of the lists of attentions that a forward has, of those that the leader has told of."""
    dtype: int = 0
    """Its place in `DTYPES`."""
    choice: int = 0
    """Which of the choices of attention that all ranks know."""
    streams: int = 0
    """How many forwards run side by side, and `lag` turns apart."""
    lag: int = 0
    steps: int = 0
    """Of `LATENTS`: in how many steps they were helped."""
    work: tuple[int, ...] = ()
    """The helpers' rows; zero: it does not help. Of `MEASURE`: 1 for those that take part."""

    def pack(self, device: torch.device) -> Tensor:
        """As numbers, int64; their count depends on that of helpers alone."""
        *numbers, work = astuple(self)
        return torch.tensor([*numbers, *work], device=device)

    @classmethod
    def unpack(cls, message: Tensor) -> Message:
        """What `pack` was called on."""
        values = message.tolist()
        *names, _ = asdict(cls())
        return cls(**dict(zip(names, values, strict=False)), work=tuple(values[len(names) :]))

    @property
    def helpers(self) -> tuple[int, ...]:
        """Who has some of the work, counted from 0."""
        return tuple(helper for helper, work in enumerate(self.work) if work)

    def shares(self, num_ranks: int) -> Shares:
        """Those of an attention, of ranks that denoise and helpers."""
        own = Shares.equal(self.num_tokens, self.num_heads, num_ranks, self.num_replicated)
        return own.with_helpers(self.work)


Plan = Callable[[Message, tuple[int, ...]], Sequence[int]]
"""(a step, the idle helpers) -> every helper's work."""


class _Member:
    """A rank that denoises or helps, as one of both together: those that denoise come first."""

    def __init__(self, union: World, num_ranks: int, kernel: Kernel, choices: Sequence[Choice]) -> None:
        """num_ranks: how many denoise. choices: of attention, the same on all ranks."""
        self._world, self._num_ranks = union, num_ranks
        self._num_helpers = union.size - num_ranks
        self._transport = union.transport(point_to_point=True)
        # NCCL wants all ranks in a group's first exchange.
        self._transport.all_gather(torch.zeros(1, device=union.device))
        self._measured = MeasuredKernel(kernel, union.device)
        self._choices, sharers = choices, Sharers(self._transport)
        self._builds = [join(sharers, choice, kernel) for choice in choices]
        self._attend = lru_cache(maxsize=64)(self._new_attend)

    def _new_attend(self, shares: Shares, choice: int) -> Attend:
        return self._builds[choice](shares)

    def attend(self, agreed: Message) -> Attend:
        """Attention as it was agreed."""
        return self._attend(agreed.shares(self._num_ranks), agreed.choice)

    def _measure(self, agreed: Message) -> Tensor:
        """Seconds, fp64: of a row on this rank; of the link, its latency and those of a byte."""
        ranks = self._num_ranks + len(agreed.helpers)
        rows, heads = agreed.num_tokens + agreed.num_replicated, max(1, agreed.num_heads // ranks)
        like = torch.empty(
            agreed.batch, rows, heads, agreed.head_dim, dtype=DTYPES[agreed.dtype], device="meta"
        )
        row = self._measured.seconds(like, like) / (rows * heads)
        if self._world.rank < self._num_ranks:
            peers = [self._num_ranks + helper for helper in agreed.helpers]
        else:
            peers = list(range(self._num_ranks))
        device = self._world.device
        link = measure_link(self._transport, like.nbytes // self._num_ranks, device, peers)
        return torch.tensor([row, link.latency, link.seconds_per_byte], dtype=torch.float64, device=device)


class Helped(_Member):
    """A rank that denoises: what was agreed for the step, and attention with those who help."""

    def __init__(
        self,
        team: World,
        union: World,
        kernel: Kernel = sdpa,
        choices: Sequence[Choice] = (Choice.plain(),),
        *,
        plan: Plan | None = None,
    ) -> None:
        """team: the ranks that denoise; union: they and the helpers, with a group of its own.

        plan: instead of measuring and judging; for tests.
        """
        super().__init__(union, team.size, kernel, choices)
        self._team, self._leads = team.transport(), team.rank == 0
        self._plan = plan or self._measured_plan
        helpers = range(self._num_helpers) if self._leads else ()
        self._channels = [Channel(union, 0, [team.size + helper], AHEAD) for helper in helpers]
        self._sent = [0 for _ in self._channels]
        self._judges: dict[Message, Judge] = {}
        self._works: dict[tuple[Message, tuple[int, ...]], list[int]] = {}
        self._step, self._agreed, self._began = Message(), Message(), 0.0
        self._steps = 0
        self._sites: dict[tuple[tuple[int, str], ...], int] = {}

    def number_of(self, sites: Sequence[Site]) -> int:
        """The number under which helpers know a forward's attentions.

        Every rank that denoises calls it; helpers hold no blocks to ask.
        """
        keys = tuple(site.key for site in sites)
        if keys not in self._sites:
            self._sites[keys] = len(self._sites)
            if self._leads:
                self._world.tell(_attentions(self._sites[keys]), json.dumps(keys))
        return self._sites[keys]

    def begin(self, step: Message) -> Attend | None:
        """Agree on a step of this kind: its attention with helpers, or None where nobody helps.

        Every rank that denoises calls it. step: all but its `kind` and `work`.
        """
        self._step = step
        while True:
            decided = self._decide(step) if self._leads else step
            self._agreed = self._tell(replace(decided, work=decided.work or (0,) * self._num_helpers))
            if self._agreed.kind != MEASURE:
                break
            self._take_measures(step)
        self._began = now(self._world.device)
        return self.attend(self._agreed) if self._agreed.kind == HELP else None

    def end(self) -> None:
        """Note that the step is done."""
        self._steps += self._agreed.kind == HELP
        if self._leads:
            seconds = now(self._world.device) - self._began
            self._judge(self._step).record(self._agreed.helpers, seconds)

    def latents(self, helpers: Sequence[int]) -> int:
        """The latents of the steps since the last call go to these helpers next, or to ranks that are none.

        Every rank that denoises calls it. Gives how many of the steps were helped.
        """
        steps, self._steps = self._steps, 0
        for helper in helpers if self._leads else ():
            self._send(helper, Message(kind=LATENTS, steps=steps))
            self._sent[helper] += 1
        return steps

    def close(self) -> None:
        """No more steps come."""
        for helper, channel in enumerate(self._channels):
            self._send(helper, Message(kind=END))
            channel.close()

    def _decide(self, step: Message) -> Message:
        idle = tuple(
            helper for helper, sent in enumerate(self._sent) if self._world.told(_waits(helper, sent))
        )
        work = self._plan(step, idle)
        if min(work, default=0) < 0:
            return replace(step, kind=MEASURE, work=tuple(int(number < 0) for number in work))
        return replace(step, kind=HELP if any(work) else ALONE, work=tuple(work))

    def _measured_plan(self, step: Message, idle: tuple[int, ...]) -> Sequence[int]:
        """What helpers can do in time; -1 for those that have to be measured first."""
        chosen = self._judge(step).choose(idle)
        unknown = [-int(helper in chosen) for helper in range(self._num_helpers)]
        return self._works.get((step, chosen), unknown)

    def _judge(self, step: Message) -> Judge:
        return self._judges.setdefault(step, Judge())

    def _tell(self, decided: Message) -> Message:
        """Everybody whom it concerns."""
        device = self._world.device
        agreed = Message.unpack(self._team.broadcast(decided.pack(device)))
        if self._leads:
            for helper in agreed.helpers:
                self._send(helper, agreed)
        return agreed

    def _send(self, helper: int, message: Message) -> None:
        work = message.work or (0,) * self._num_helpers
        self._channels[helper].send(replace(message, work=work).pack(self._world.device))

    def _take_measures(self, step: Message) -> None:
        """Of what was agreed to be measured; the leader keeps what the helpers can do."""
        chosen, mine = self._agreed.helpers, self._measure(self._agreed)
        row_seconds = max(float(figures[0]) for figures in self._team.all_gather(mine))
        if not self._leads:
            return
        sizes = [0] * self._world.size
        for helper in chosen:
            sizes[self._num_ranks + helper] = len(mine)
        figures = self._transport.start([mine[:0]] * self._world.size, sizes).wait()
        speeds = [_speed(step, figures[self._num_ranks + helper]) for helper in chosen]
        rows = step.num_heads * (step.num_tokens + step.num_replicated)
        parts = self._choices[step.choice].parts * step.streams
        found = helpers_work(rows, row_seconds, self._num_ranks, speeds, parts)
        by_helper = dict(zip(chosen, found, strict=True))
        self._works[step, chosen] = [by_helper.get(helper, 0) for helper in range(self._num_helpers)]


class Helper(_Member):
    """A decode rank that helps while it waits for latents."""

    def __init__(
        self,
        union: World,
        num_ranks: int,
        kernel: Kernel = sdpa,
        choices: Sequence[Choice] = (Choice.plain(),),
    ) -> None:
        super().__init__(union, num_ranks, kernel, choices)
        self._number = union.rank - num_ranks
        self._channel = Channel(union, 0, [union.rank], AHEAD)
        self._size = len(Message(work=(0,) * self._num_helpers).pack(union.device))
        self._received = 0
        self._sites = cache(self._read_sites)

    def until_latents(self) -> int:
        """Help until this rank's next latents come, or no more steps do: how many of theirs were helped."""
        self._world.tell(_waits(self._number, self._received))
        self._received += 1
        while True:
            message = Message.unpack(self._channel.receive([self._size], torch.int64, self._world.device))
            if message.kind == HELP:
                self._help(message)
            elif message.kind == MEASURE:
                mine = self._measure(message)
                outgoing = [mine, *[mine[:0]] * (self._world.size - 1)]
                self._transport.start(outgoing, [0] * self._world.size).wait()
            else:
                return message.steps

    @torch.no_grad()
    def _help(self, agreed: Message) -> None:
        """In one step: the turns of its forwards are those of the ranks that denoise."""
        works = helping(agreed, self._sites(agreed.sites), self.attend(agreed), self._world.device)
        run_interleaved(works, agreed.lag)

    def _read_sites(self, number: int) -> list[Site]:
        return [Site(layer, name) for layer, name in json.loads(self._world.word(_attentions(number)))]


@dataclass(frozen=True, kw_only=True)
class _NoTokens(Tokens):
    """What a rank holds that holds nothing."""

    @property
    def changing(self) -> tuple[Tensor, ...]:
        return ()

    def shard(self, start: int, stop: int) -> Self:  # noqa: ARG002
        return self


class _Hollow(Block[_NoTokens]):
    """An attention alone, on a rank that holds no weights. A helper does not know the step."""

    def __init__(self, site: Site, nothing: Tensor) -> None:
        self.site, self._nothing = site, nothing

    def project(self, tokens: _NoTokens) -> Projection:  # noqa: ARG002
        return iter((self._nothing, self._nothing, self._nothing))

    def finish(self, tokens: _NoTokens, attended: Tensor) -> _NoTokens:  # noqa: ARG002
        return tokens


def helping(
    agreed: Message, sites: Sequence[Site], attend: Attend, device: torch.device
) -> list[Generator[Wait, None, None]]:
    """A helper's part of a step: the attentions of each of its forwards, by a rank that holds nothing."""
    shape = agreed.batch, 0, agreed.num_heads, agreed.head_dim
    nothing = torch.empty(shape, dtype=DTYPES[agreed.dtype], device=device)
    none = nothing.new_empty(1, 0, 1, agreed.head_dim)
    layout = Layout(rope=Rope(positions=none.new_empty(0, 3), cos=none, sin=none))
    tokens = _NoTokens(hidden_states=nothing.flatten(2), layout=layout)

    def follow() -> Generator[Wait, None, None]:
        for site in sites:
            yield from _Hollow(site, nothing).run(tokens, attend)

    return [follow() for _ in range(agreed.streams)]


def _speed(step: Message, figures: Tensor) -> HelperSpeed:
    """From what a helper has measured."""
    row, latency, seconds_per_byte = figures.tolist()
    link = seconds_per_byte * step.batch * step.head_dim * DTYPES[step.dtype].itemsize
    rows = step.num_tokens + step.num_replicated
    return HelperSpeed(compute=row, link=link, fixed=2 * latency + 2 * rows * link)


def _attentions(number: int) -> str:
    """The word under which the leader says which attentions a forward has."""
    return f"attentions {number}"


def _waits(helper: int, number: int) -> str:
    """The word that a helper leaves when it begins to wait for its latents `number`, counted from 0."""
    return f"helper {helper} waits for latents {number}"
