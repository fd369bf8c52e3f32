"""Attention co-processing: idle decode ranks share the denoising attention (PipeDiT, arXiv 2511.12056).

The decode ranks that help hold no tokens and no weights. With their help, attention is exchanged as usual,
but among more ranks. Before each step, the first denoise rank checks which decode ranks are idle, decides
which of them help, and sends one small message (`Message`) to the other denoise ranks and to these helpers.
Nothing is decided within a step. A decode rank that waits for latents listens for these messages, and helps
with the steps that they announce, until its latents come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Self

import torch
from torch import Tensor

from paradit.attention.base import Attend, Dealt, Kernel, Layout, Projection, Site, Wait
from paradit.attention.join import join
from paradit.attention.local_attention import sdpa
from paradit.attention.measured import MeasuredKernel
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.tensor_queue import Channel
from paradit.distributed.timing import measure_link, now
from paradit.distributed.world import World
from paradit.models.protocol import Block, Tokens
from paradit.parallel.coprocess_message import ALONE, DTYPES, END, HELP, LATENTS, MEASURE, Message
from paradit.parallel.run_blocks import run_interleaved
from paradit.scheduling.helper_work import HelperSpeed, Judge, helpers_work
from paradit.scheduling.stages import AHEAD

Plan = Callable[[Message, tuple[int, ...]], Sequence[int]]
"""Type of a function that decides how much attention each helper (idle decode rank) computes in a step.

Its arguments are the message about the step, and the indices of the helpers that are idle. It returns one
number per helper: the (head, query row) pairs to compute, or -1 if the helper's speed must be measured first.
"""


class _Member:
    """A rank that takes part in co-processed attention: a denoise rank, or a decode rank that may help."""

    def __init__(self, union: World, num_ranks: int, kernel: Kernel, choices: Sequence[Choice]) -> None:
        """Set up each of the attention forms `choices` on the ranks that denoise and those that may help.

        union: the ranks that denoise, followed by the decode ranks that may help. num_ranks: number of ranks
        that denoise. kernel: function that computes attention. choices: attention forms (such as Ulysses)
        with their options, the same on all ranks.
        """
        self._world, self._num_ranks = union, num_ranks
        self._num_helpers = union.size - num_ranks
        self._transport = union.transport(point_to_point=True)
        # NCCL needs all ranks in a group's first exchange.
        self._transport.all_gather(torch.zeros(1, device=union.device))
        self._measured = MeasuredKernel(kernel, union.device)
        self._choices, sharers = choices, Sharers(self._transport)
        self._builds = [join(sharers, choice, kernel) for choice in choices]
        # Shares change between steps, and an attention keeps the plans of what it sends.
        self._attend = lru_cache(maxsize=64)(self._new_attend)

    def _new_attend(self, shares: Shares, choice: int) -> Attend:
        attend = self._builds[choice](shares)
        assert not isinstance(attend, Dealt), "forms that deal tokens are not helped"
        return attend

    def attend(self, agreed: Message) -> Attend:
        """Return the attention function for a step in which decode ranks take a share of the attention.

        agreed: the message about the step, which says how attention is divided among the ranks.
        """
        return self._attend(agreed.shares(self._num_ranks), agreed.choice)

    def _measure(self, agreed: Message, sites: Sequence[Site]) -> Tensor:
        """Measure how fast this rank computes attention and how fast its link is; return a tensor [3], fp64.

        It contains the seconds to compute one query row of one head, the latency of the link in seconds, and
        the seconds to send one byte. The row's time is the mean over `sites`, the attention computations of a
        forward pass, which may have different patterns. agreed: the message that asks for the measurement.
        """
        ranks = self._num_ranks + len(agreed.helpers)
        rows, heads = agreed.num_tokens + agreed.num_replicated, max(1, agreed.num_heads // ranks)
        # Only shape and dtype are used, so the tensor needs no memory.
        like = torch.empty(
            agreed.batch, rows, heads, agreed.head_dim, dtype=DTYPES[agreed.dtype], device="meta"
        )
        taken = [self._measured.seconds(like, like, site.pattern) for site in sites]
        row = sum(taken) / len(taken) / (rows * heads)
        if self._world.rank < self._num_ranks:
            peers = [self._num_ranks + helper for helper in agreed.helpers]
        else:
            peers = list(range(self._num_ranks))
        device = self._world.device
        link = measure_link(self._transport, like.nbytes // self._num_ranks, device, peers)
        return torch.tensor([row, link.latency, link.seconds_per_byte], dtype=torch.float64, device=device)


class Helped(_Member):
    """Denoise rank's part in co-processing, in which idle decode ranks take a share of the attention.

    The decode ranks that help are chosen anew before each step.
    """

    def __init__(
        self,
        denoisers: World,
        union: World,
        kernel: Kernel = sdpa,
        choices: Sequence[Choice] = (Choice.plain(),),
        *,
        plan: Plan | None = None,
    ) -> None:
        """Set up each of the attention forms `choices`; on the first rank, also open channels to the helpers.

        denoisers: the ranks that denoise. union: these ranks, followed by the helpers (decode ranks that may
        take a share of the attention), with a process group of its own. kernel: function that computes
        attention. choices: attention forms (such as Ulysses) with their options. plan: function that decides
        how much each helper computes, for tests; None: measurements decide.
        """
        super().__init__(union, denoisers.size, kernel, choices)
        self._denoisers, self._leads = denoisers.transport(), denoisers.rank == 0
        self._plan = plan or self._measured_plan
        helpers = range(self._num_helpers) if self._leads else ()
        self._channels = [Channel(union, 0, [denoisers.size + helper], AHEAD) for helper in helpers]
        self._sent = [0 for _ in self._channels]
        self._judges: dict[Message, Judge] = {}
        self._works: dict[tuple[Message, tuple[int, ...]], list[int]] = {}
        self._step, self._agreed, self._began = Message(), Message(), 0.0
        self._steps = 0
        self._sites: dict[tuple[Site, ...], int] = {}

    def number_of(self, sites: Sequence[Site]) -> int:
        """Return the id by which helpers look up which attention computations a forward pass has.

        Helpers (decode ranks that take a share of the attention) hold no transformer blocks, so they cannot
        know it otherwise. sites: the attention computations. The first rank publishes them if they are new.
        Every rank that denoises calls this.
        """
        found = tuple(sites)
        if found not in self._sites:
            self._sites[found] = len(self._sites)
            if self._leads:
                self._world.publish(_attentions(self._sites[found]), json.dumps([asdict(s) for s in found]))
        return self._sites[found]

    def begin(self, step: Message) -> Attend | None:
        """Agree which decode ranks help with a step's attention; return the attention function to use.

        Returns None if no decode rank helps. Every rank that denoises calls this. step: description of the
        step's attention as a message, in which `kind` and `work` are still unset.
        """
        self._step = step
        while True:
            decided = self._decide(step) if self._leads else step
            # Without a decision about helpers, zeros keep the message at its fixed length.
            self._agreed = self._broadcast(replace(decided, work=decided.work or (0,) * self._num_helpers))
            if self._agreed.kind != MEASURE:
                break
            self._take_measures(step)
        self._began = now(self._world.device)  # measurements do not count as part of the step
        return self.attend(self._agreed) if self._agreed.kind == HELP else None

    def end(self) -> None:
        """Record that a denoising step has ended.

        The first denoise rank also records the step's time, to judge whether steps are faster if decode ranks
        take a share of the attention.
        """
        self._steps += self._agreed.kind == HELP
        if self._leads:
            seconds = now(self._world.device) - self._began
            self._judge(self._step).record(self._agreed.helpers, seconds)

    def latents(self, helpers: Sequence[int]) -> int:
        """Announce which decode ranks get latents next; return in how many steps decode ranks helped.

        A decode rank helps if it takes a share of the attention. Steps are counted since the last call.
        helpers: indices of the decode ranks that get latents, among those that may help; empty if the latents
        go to other ranks. Every rank that denoises calls this.
        """
        steps, self._steps = self._steps, 0
        # Until it publishes the next number, a helper that was sent latents no longer counts as idle.
        for helper in helpers if self._leads else ():
            self._send(helper, Message(kind=LATENTS, steps=steps))
            self._sent[helper] += 1
        return steps

    def close(self) -> None:
        """Tell the decode ranks that help with attention that no more steps will come."""
        for helper, channel in enumerate(self._channels):
            self._send(helper, Message(kind=END))
            channel.close()

    def _decide(self, step: Message) -> Message:
        idle = tuple(
            helper for helper, sent in enumerate(self._sent) if self._world.is_published(_waits(helper, sent))
        )
        work = self._plan(step, idle)
        # A helper with negative work must be measured first; `begin` then decides again.
        if min(work, default=0) < 0:
            return replace(step, kind=MEASURE, work=tuple(int(number < 0) for number in work))
        return replace(step, kind=HELP if any(work) else ALONE, work=tuple(work))

    def _measured_plan(self, step: Message, idle: tuple[int, ...]) -> Sequence[int]:
        """Return how many (head, query row) pairs each helper computes; -1 if it must be measured first.

        A helper is a decode rank that takes a share of the attention while it is idle. step: the message
        about the step. idle: indices of the helpers that are idle.
        """
        chosen = self._judge(step).choose(idle)
        unknown = [-int(helper in chosen) for helper in range(self._num_helpers)]
        return self._works.get((step, chosen), unknown)

    def _judge(self, step: Message) -> Judge:
        return self._judges.setdefault(step, Judge())

    def _broadcast(self, decided: Message) -> Message:
        """Send the first denoise rank's decision about a step to the other ranks; return the decision.

        The decision says which idle decode ranks take a share of the attention, or must be measured first. It
        is sent to these decode ranks and to all denoise ranks. Every denoise rank calls this. decided: the
        decision, as a message; ignored on all denoise ranks but the first.
        """
        device = self._world.device
        agreed = Message.unpack(self._denoisers.broadcast(decided.pack(device)))
        if self._leads:
            for helper in agreed.helpers:
                self._send(helper, agreed)
        return agreed

    def _send(self, helper: int, message: Message) -> None:
        work = message.work or (0,) * self._num_helpers
        self._channels[helper].send(replace(message, work=work).pack(self._world.device))

    def _take_measures(self, step: Message) -> None:
        """Measure the speed of helpers; the first rank stores how much attention each of them computes.

        Helpers are idle decode ranks that take a share of the attention. step: the message about the step for
        which helpers are measured.
        """
        chosen = self._agreed.helpers
        mine = self._measure(self._agreed, list(self._sites)[self._agreed.sites])
        # The slowest denoise rank counts, because the others wait for it.
        row_seconds = max(float(figures[0]) for figures in self._denoisers.all_gather(mine))
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
    """A decode rank that helps with the denoising attention while it waits for latents."""

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
        """Help with attention until latents come for this decode rank, or until all denoising has ended.

        Returns the number of steps in which decode ranks helped since latents were last sent to be decoded.
        """
        self._world.publish(_waits(self._number, self._received))
        self._received += 1
        while True:
            message = Message.unpack(self._channel.receive([self._size], torch.int64, self._world.device))
            if message.kind == HELP:
                self._help(message)
            elif message.kind == MEASURE:
                mine = self._measure(message, self._sites(message.sites))
                # Only the first rank, which decides, gets the result.
                outgoing = [mine, *[mine[:0]] * (self._world.size - 1)]
                self._transport.start(outgoing, [0] * self._world.size).wait()
            else:
                return message.steps

    @torch.no_grad()
    def _help(self, agreed: Message) -> None:
        """Compute this decode rank's share of a step's attention; interleaved guidance branches take turns.

        agreed: the message about the step.
        """
        works = helping(agreed, self._sites(agreed.sites), self.attend(agreed), self._world.device)
        run_interleaved(works, agreed.lag)

    def _read_sites(self, number: int) -> list[Site]:
        found = json.loads(self._world.lookup(_attentions(number)))
        return [Site(**{**one, "pattern": one["pattern"] and Pattern(**one["pattern"])}) for one in found]


@dataclass(frozen=True, kw_only=True)
class _NoTokens(Tokens):
    """Empty stand-in for a video's tokens on a decode rank that only helps with attention."""

    @property
    def changing(self) -> tuple[Tensor, ...]:
        return ()

    def shard(self, start: int, stop: int) -> Self:  # noqa: ARG002
        return self


class _Hollow(Block[_NoTokens]):
    """Transformer block reduced to its attention, for a decode rank that has no weights.

    Such a rank takes a share of the attention while it is idle. It does not know the denoising step: its
    `Site` (the place of an attention in the model) has step 0.
    """

    def __init__(self, site: Site, nothing: Tensor) -> None:
        self.site, self._nothing = site, nothing

    def project(self, tokens: _NoTokens) -> Projection:  # noqa: ARG002
        return iter((self._nothing, self._nothing, self._nothing))

    def finish(self, tokens: _NoTokens, attended: Tensor) -> _NoTokens:  # noqa: ARG002
        return tokens


def helping(
    agreed: Message, sites: Sequence[Site], attend: Attend, device: torch.device
) -> list[Generator[Wait, None, None]]:
    """Return generators that run a helping decode rank's part of a denoising step, one for each forward pass.

    A forward pass computes one guidance branch, or all of them in one batch. The generators run only its
    attention. agreed: the message about the step. sites: the attention computations of a forward pass.
    attend: function that computes this rank's share of attention.
    """
    # A helper has no tokens of its own: all that it computes comes from other ranks, and goes back to them.
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
    """Return the speed of a decode rank that helps with attention, from what it measured.

    step: the message about the step. figures: the tensor that `_Member._measure` returned on that rank.
    """
    row, latency, seconds_per_byte = figures.tolist()
    link = seconds_per_byte * step.batch * step.head_dim * DTYPES[step.dtype].itemsize
    rows = step.num_tokens + step.num_replicated
    # One latency each way, and the keys and values of one head: a share may begin or end within a head.
    return HelperSpeed(compute=row, link=link, fixed=2 * latency + 2 * rows * link)


def _attentions(number: int) -> str:
    """Return the store key under which the list of a forward pass's attention computations is published.

    number: id of the list.
    """
    return f"attentions {number}"


def _waits(helper: int, number: int) -> str:
    """Return the store key by which a decode rank publishes that it waits for latents, and so is idle.

    helper: index of this rank among the decode ranks that may help with attention. number: number of times
    that this rank has waited for latents before.
    """
    return f"helper {helper} is waiting for latents {number}"
