"""A long video in blocks (DualParal), played: `scheduling.layer_pipeline`'s programs over devices and links.

As in `sampling.block_pipeline`: a block-step's hidden states travel to the next stage, those of each guidance
branch by themselves; ranks are ready for two messages ahead; predictions come back to the first rank, which
decodes a finished block before it goes on, unless another rank decodes. Ranks that share a stage's tokens are
in step with each other, so the first of them speaks for all; what they exchange is known beforehand
(`planner.stage_step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import repeat
from typing import TYPE_CHECKING

from paradit.planner.costs import ITEMSIZE
from paradit.planner.events import Compute, Message, Played, Post, Step, Wait, play
from paradit.planner.stage_step import Kind, StageSeconds, StageSteps, kind_of
from paradit.requests import latent_shape
from paradit.scheduling.block_queue import BlockQueue, BlockStep, queue_of
from paradit.scheduling.layer_pipeline import (
    Collect,
    Operation,
    StageGrid,
    in_flight,
    program,
    split_layers,
)

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.placement import Placement
    from paradit.planner.hardware import Cluster
    from paradit.requests import Request

AHEAD = 2
"""How many messages a rank is ready for beyond the one that it waits for (`distributed.channel.Expected`)."""
SETTLED, MEASURED = 3, 4
"""Blocks that leave a full queue until each takes as long as the one before; and so many after them that tell
how long that is. Every further one takes as long."""
STEADY = 1e-4
"""By which part the later ones of these may take longer or less long; else more blocks are played."""


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """What came of a video, in seconds from when its texts are there."""

    seconds: float
    """Until the last frames, decoded."""
    denoised: float
    """Until the last block's latents."""
    first: float
    """Until the first block's."""
    computing: tuple[float, ...]
    """Of each rank."""


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """A resolved request in blocks, on the ranks of a placement; every replica makes one such video."""

    cluster: Cluster
    spec: ModelSpec
    request: Request
    placement: Placement
    dtype: str
    decode: float
    """Seconds that all frames take to decode."""
    known: dict[tuple[tuple[int, ...], ...], StageSteps] = field(default_factory=dict, repr=False)
    """What is known of the ranks that share tokens: placements that differ otherwise have it in common."""

    @cached_property
    def queue(self) -> BlockQueue:
        return queue_of(self.request, latent_shape(self.request, self.spec)[1])

    def run(self) -> LongRun:
        """Played as far as is needed to know the rest."""
        queue = self.queue
        assert queue.num_blocks
        # The first rank is ahead of what it collects by so many rounds, and knows of the end before.
        ahead = -(-in_flight(self.grid.num_stages) // queue.num_steps)
        settled = SETTLED + ahead
        while True:
            last = settled + MEASURED
            more = max(0, queue.num_blocks - (queue.num_steps + last + ahead + 1))
            played = self.played(more)
            done = [use.end for use in played.uses if use.name.startswith(_DONE)]
            done = done[: queue.num_blocks - more]  # of the first replica
            steady, each = _pace(done[last - MEASURED : last + 1]) if more else (True, 0.0)
            if steady:
                break
            settled *= 2
        if self.leader_decodes:
            seconds = played.ends[self.placement.denoise_ranks[0]] + more * each
        else:
            decoder = self.placement.decode_ranks[0]
            came = [sent.end for sent in played.sent if sent.message.ranks[1:] == (decoder,)]
            seconds = self._decoded(_with_more(came, last, more, each))
        done = _with_more(done, last, more, each)
        return LongRun(seconds=seconds, denoised=done[-1], first=done[0], computing=self._computing())

    def _decoded(self, came: list[float]) -> float:
        """When a rank that only decodes has decoded blocks that come then."""
        free = 0.0
        for block, there in enumerate(came):
            free = max(free, there) + self.decode_seconds(self.queue, block)
        return free

    @property
    def least_seconds(self) -> float:
        """That it takes at least: what the stage that has most to do is busy.

        Of exchanges only the usual ones count here, which are most.
        """
        kinds = _kinds(self.queue)
        (usual, times), *_ = kinds.most_common(1)

        def busy(layers: int) -> float:
            computing = sum(n * max(self.steps.computing(kind, layers)) for kind, n in kinds.items())
            return self.branches * (computing + times * self.steps.seconds(usual, layers).exposed)

        first, most = (busy(layers) for layers in (len(self.split[0]), max(map(len, self.split))))
        return max(most, first + self.decode if self.leader_decodes else 0.0)

    @property
    def longest_step(self) -> float:
        """Of all branches that a rank computes, of most frames, in the stage that has most layers."""
        kind = max(_kinds(self.queue), key=lambda kind: (sum(kind[:3]), kind[3]))
        return self.branches * self.steps.seconds(kind, max(map(len, self.split))).seconds

    def _computing(self) -> tuple[float, ...]:
        """Seconds of each rank over the whole video."""
        placement, grid = self.placement, self.grid
        found = [0.0] * placement.replica_ranks
        for kind, number in _kinds(self.queue).items():
            each = self.steps.computing(kind, 1)
            for place, rank in enumerate(placement.denoise_ranks):
                layers = len(self.split[grid.stage(place)])
                found[rank] += number * self.branches * layers * each[grid.place(place)]
        found[placement.decode_ranks[0]] += self.decode
        return tuple(found) * placement.replicas

    @property
    def leader_decodes(self) -> bool:
        return set(self.placement.decode_ranks) == {self.placement.denoise_ranks[0]}

    def played(self, fewer: int = 0) -> Played:
        """The run, of so many blocks fewer."""
        assert self.queue.num_frames
        queue = replace(self.queue, num_frames=self.queue.num_frames - fewer * self.queue.block_frames)
        return play([self._program(rank, queue) for rank in range(self.placement.ranks)])

    def _program(self, rank: int, queue: BlockQueue) -> Iterator[Step]:
        replica, within = divmod(rank, self.placement.replica_ranks)
        first, ranks = replica * self.placement.replica_ranks, self.placement.denoise_ranks
        if within in ranks:
            place = ranks.index(within)
            if self.grid.place(place) == 0:
                yield from _Team(self, queue, first, place).program()
        elif within in self.placement.decode_ranks:
            assert queue.num_blocks
            for block in range(queue.num_blocks):
                yield Wait(("block", first, block))
                yield Compute(f"decode block {block}", self.decode_seconds(queue, block))

    def decode_seconds(self, queue: BlockQueue, block: int) -> float:
        """Of a block's frames."""
        assert self.queue.num_frames
        return self.decode * queue.frames_of(block) / self.queue.num_frames

    @cached_property
    def grid(self) -> StageGrid:
        """Where the ranks that denoise stand."""
        return self.placement.stage_grid(self.request, self.spec)

    @cached_property
    def split(self) -> list[range]:
        """The layers of each stage, taken to be alike."""
        return split_layers([1.0] * self.spec.transformers[0].num_layers, self.grid.num_stages)

    @cached_property
    def steps(self) -> StageSteps:
        """What block-steps take on the ranks that share tokens, of all replicas."""
        ranks, size = self.placement.denoise_ranks, self.placement.replica_ranks
        teams = tuple(
            tuple(first + ranks[place] for place in places)
            for first in range(0, self.placement.ranks, size)
            for places in self.grid.groups()
        )
        if teams not in self.known:
            self.known[teams] = StageSteps(self.cluster, self.spec, self.dtype, teams, self.tokens)
        return self.known[teams]

    def step_seconds(self, stage: int, kind: Kind) -> StageSeconds:
        """A block-step of one branch in one stage's layers."""
        return self.steps.seconds(kind, len(self.split[stage]))

    @cached_property
    def tokens(self) -> int:
        """Of a latent frame."""
        assert self.request.height and self.request.width
        return self.spec.tokens(1, self.request.height, self.request.width)

    @cached_property
    def branches(self) -> int:
        """How many each rank computes, one after the other."""
        assert self.request.guidance_scale
        return self.spec.num_branches(self.request.guidance_scale) // self.grid.cfg_degree

    @property
    def values_of_token(self) -> int:
        """Of latents, or predictions."""
        _, height, width = self.spec.transformers[0].patch_size
        return self.spec.vae.z_dim * height * width

    def block_message(self, first: int, frames: int) -> Message:
        """A finished block's latents, from the leader of the replica that begins at a rank to its decoder."""
        placement = self.placement
        ranks = first + placement.denoise_ranks[0], first + placement.decode_ranks[0]
        size = float(frames * self.tokens * self.values_of_token * ITEMSIZE["fp32"])
        return self.message("latents", ranks, [[0.0, size], [0.0, 0.0]])

    def message(self, name: str, ranks: tuple[int, ...], sent: list[list[float]]) -> Message:
        """Bytes from the i-th to the j-th of the cluster's ranks."""
        busy, latency = self.cluster.transfer(ranks, sent)
        return Message(name, ranks, busy, latency, sent)


_DONE = "latents of block "


def _pace(ends: Sequence[float]) -> tuple[bool, float]:
    """Whether one comes as steadily as the other, and how long after it."""
    half = len(ends) // 2
    early, late = ends[half] - ends[0], ends[-1] - ends[half]
    return abs(late - early) <= STEADY * late, (early + late) / (len(ends) - 1)


def _with_more(ends: list[float], last: int, more: int, each: float) -> list[float]:
    """The same with so many more after the last steady one."""
    between = [ends[last] + number * each for number in range(1, more + 1)]
    return [*ends[: last + 1], *between, *(end + more * each for end in ends[last + 1 :])]


@cache
def _kinds(queue: BlockQueue) -> Counter[Kind]:
    """How many block-steps of each kind a video has."""
    return Counter(map(kind_of, queue.steps()))


@cache
def _operations(queue: BlockQueue, num_stages: int, is_leader: bool) -> list[tuple[Operation, Kind]]:
    """What a rank does, and the kind of its block-steps; but for the first one all do the same."""
    found = program(queue, num_stages, 0 if is_leader else 1)
    return [(operation, kind_of(operation.step)) for operation in found]


class _Team:
    """What ranks that share tokens do, as their first one says for all of them: it posts for each."""

    def __init__(self, video: LongVideo, queue: BlockQueue, first: int, place: int) -> None:
        """first: the cluster's rank that the placement's rank 0 is. place: of the team's first rank, among
        those that denoise.
        """
        self._video, self._queue, self._pipe, self._place = video, queue, first, place
        self._grid = grid = video.grid
        self._ranks = [first + rank for rank in video.placement.denoise_ranks]
        self._stage, self._is_leader = grid.stage(place), place == 0
        self._is_last = self._stage == grid.num_stages - 1
        self._operations = _operations(queue, grid.num_stages, self._is_leader)
        self._kinds = [kind for operation, kind in self._operations if not isinstance(operation, Collect)]
        self._messages: dict[tuple[str, int, Kind], Message] = {}
        stage_ranks, sharers = grid.stage_ranks, grid.sharers
        self._mates = range(0, stage_ranks, sharers)
        """The places at which the first stage's teams begin."""
        self._senders = range(grid.num_ranks - stage_ranks, grid.num_ranks, sharers)
        """And the last stage's, which send predictions."""

    def program(self) -> Iterator[Step]:
        """In the order of `BlockPipeline.blocks`."""
        hops = len(self._kinds) * self._video.branches
        if self._stage:
            for index in range(min(AHEAD, hops)):
                yield from self._hop(self._place - self._grid.stage_ranks, index)
        if self._is_leader:
            for index in range(min(AHEAD, len(self._kinds))):
                yield from self._predictions(index)
        computed = collected = 0
        for operation, kind in self._operations:
            if isinstance(operation, Collect):
                yield from self._collect(operation.step, collected)
                collected += 1
                continue
            yield from self._share(computed)
            name = f"block {operation.step.block}, step {operation.step.step}"
            for branch in range(self._video.branches):
                yield from self._compute(name, kind, computed * self._video.branches + branch)
            if self._is_last:
                yield from self._prediction(self._place, computed, as_leader=False)
            computed += 1

    def _share(self, index: int) -> Iterator[Step]:
        """A block-step's latents, from the leader to the others of the first stage."""
        if self._stage == 0 and not self._is_leader:
            yield Wait(("latents", self._pipe, self._place, index))
        for mate in self._mates if self._is_leader else ():
            message = self._message("latents", mate, self._kinds[index])
            if len(message.ranks) == 1:
                continue
            yield from repeat(Post(("latents", self._pipe, mate, index), message), len(message.ranks))
            if mate == 0:  # its own team begins when all have them
                yield Wait(("latents", self._pipe, mate, index))
            elif index >= AHEAD:
                yield Wait(("latents", self._pipe, mate, index - AHEAD))

    def _compute(self, name: str, kind: Kind, index: int) -> Iterator[Step]:
        hops, before = len(self._kinds) * self._video.branches, self._place - self._grid.stage_ranks
        if self._stage:
            if index + AHEAD < hops:
                yield from self._hop(before, index + AHEAD)
            yield Wait(("hop", self._pipe, before, index))
        yield Compute(name, max(self._video.step_seconds(self._stage, kind).computing))
        if self._grid.sharers > 1:
            key = "exchanges", self._pipe, self._place, index
            yield from repeat(Post(key, self._message("exchanges", self._place, kind)), self._grid.sharers)
            yield Wait(key)
        if not self._is_last:
            yield from self._hop(self._place, index)
            if index >= AHEAD:  # `HOP_DEPTH` may be on their way
                yield Wait(("hop", self._pipe, self._place, index - AHEAD))

    def _collect(self, step: BlockStep, index: int) -> Iterator[Step]:
        if index + AHEAD < len(self._kinds):
            yield from self._predictions(index + AHEAD)
        for sender in self._senders:
            if len(self._message("prediction", sender, self._kinds[index]).ranks) > 1:
                yield Wait(("prediction", self._pipe, sender, index))
        if step.step < self._queue.num_steps - 1:
            return
        yield Compute(f"{_DONE}{step.block}", 0.0)
        video = self._video
        if video.leader_decodes:
            yield Compute(f"decode block {step.block}", video.decode_seconds(self._queue, step.block))
            return
        message = video.block_message(self._pipe, step.frames)
        yield from repeat(Post(("block", self._pipe, step.block), message), 2)

    def _hop(self, place: int, index: int) -> Iterator[Post]:
        """Hidden states from one team of the pipeline to that of the next stage; both post it."""
        message = self._message("hidden states", place, self._kinds[index // self._video.branches])
        yield from repeat(Post(("hop", self._pipe, place, index), message), self._grid.sharers)

    def _predictions(self, index: int) -> Iterator[Post]:
        """From all that send one, as the leader awaits them."""
        for sender in self._senders:
            yield from self._prediction(sender, index, as_leader=True)

    def _prediction(self, sender: int, index: int, *, as_leader: bool) -> Iterator[Post]:
        """A team's parts, to the leader, whose own does not travel."""
        message = self._message("prediction", sender, self._kinds[index])
        if len(message.ranks) > 1:
            times = 1 if as_leader else len(message.ranks) - 1
            yield from repeat(Post(("prediction", self._pipe, sender, index), message), times)

    def _message(self, name: str, place: int, kind: Kind) -> Message:
        """To or from the team that begins at a place."""
        if (name, place, kind) not in self._messages:
            self._messages[name, place, kind] = self._new_message(name, place, kind)
        return self._messages[name, place, kind]

    def _new_message(self, name: str, place: int, kind: Kind) -> Message:
        video, grid = self._video, self._grid
        size, itemsize = grid.sharers, ITEMSIZE[video.dtype]
        team = tuple(self._ranks[place : place + size])
        if name == "exchanges":
            stage = grid.stage(place)
            busy = {f"{name} of {team}": video.step_seconds(stage, kind).exposed}
            return Message(name, team, busy, 0.0, video.steps.sent(kind, len(video.split[stage])))
        shares = [video.steps.shares(kind).tokens_of(number) for number in range(size)]
        if name == "hidden states":
            width = video.spec.transformers[0].width * itemsize
            text = video.steps.text_rows
            ranks = team + tuple(self._ranks[place + grid.stage_ranks :][:size])
            sent = [[0.0] * 2 * size for _ in ranks]
            for number, share in enumerate(shares):
                sent[number][size + number] = float(width * (share.stop - share.start + text))
            return video.message(name, ranks, sent)
        leader, value = self._ranks[0], video.values_of_token * itemsize
        others = [number for number, rank in enumerate(team) if rank != leader]
        ranks = (leader, *(team[number] for number in others))
        sent = [[0.0] * len(ranks) for _ in ranks]
        frames, left, right, _ = kind
        own = range(left * video.tokens, (left + frames) * video.tokens)
        for index, number in enumerate(others, 1):
            if name == "latents":
                sent[0][index] = float(value * (left + frames + right) * video.tokens)
            else:
                mine = min(own.stop, shares[number].stop) - max(own.start, shares[number].start)
                sent[index][0] = float(value * max(0, mine))
        return video.message(name, ranks, sent)
