"""Simulation of a long video in frame blocks (DualParal) on the ranks of a layer pipeline.

The ranks run the programs of `scheduling.layer_pipeline` on the cluster's devices and links, as
`sampling.block_pipeline` runs them on real ones. After its layers, a rank sends a frame block's hidden states
to the next layer slice, with a separate message for each guidance branch. While a rank waits for a message,
it has begun to receive the next two. Predictions return to the first rank. The first rank decodes a finished
block before it continues, unless another rank decodes.

Ranks that share a layer slice's tokens do the same at the same time, so only the first of them is simulated;
the cost of their exchanges is computed beforehand (`planner.slice_step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from paradit.planner.discrete_events import Compute, Simulation, Step, Wait, simulate
from paradit.planner.pipeline_programs import DONE, PipelinePrograms
from paradit.planner.pipeline_video import PipelineVideo
from paradit.planner.slice_step import Kind, Layers, kind_of
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import in_flight

SETTLED, MEASURED = 3, 4
"""Two numbers of frame blocks for the simulation of a very long video. After `SETTLED` blocks, a full
pipeline should finish blocks at a steady pace. The pace is measured over the next `MEASURED` blocks. Later
blocks are not simulated, but assumed to keep that pace."""
STEADY = 1e-4
"""Tolerance for a steady pace: the largest relative difference between the paces of the first and the second
half of the measured blocks. If they differ more, more blocks are simulated."""


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """Simulated times of a long video, in seconds from when its prompt embeddings are ready."""

    seconds: float
    """Seconds until the video's last frames are decoded."""
    denoised: float
    """Seconds until the latents of the video's last frame block are denoised."""
    first: float
    """Seconds until the latents of the video's first frame block are denoised."""
    computing: tuple[float, ...]
    """Seconds of computing during the whole video, one number per rank."""


@dataclass(frozen=True)
class _Sample:
    """Simulation of a long video without most of its blocks, which are assumed to keep a steady pace.

    Blocks are completed in order; those that are left out come between two that are simulated:

        | 0, 1, 2 ... settled | ... `last` | `left_out` blocks | the rest, while the queue empties |
          irregular             regular      `pace` seconds      irregular
                                (measured)   apart
    """

    simulation: Simulation
    done: list[float]
    """Seconds after which the first rank has each simulated block's latents."""
    last: int
    left_out: int
    pace: float

    @property
    def left_out_seconds(self) -> float:
        """Seconds by which the blocks that are left out make the video's end later."""
        return self.left_out * self.pace

    def with_left_out(self, times: list[float]) -> list[float]:
        """Return the times of all blocks, given those of the simulated ones at some point of the pipeline."""
        before, after = times[: self.last + 1], times[self.last + 1 :]
        between = [before[-1] + number * self.pace for number in range(1, self.left_out + 1)]
        return [*before, *between, *(time + self.left_out_seconds for time in after)]


class LongVideo(PipelineVideo):
    """Simulation of a long video on the ranks of a layer pipeline.

    If there are data parallel replicas (groups of ranks that make different videos), it is the video of one
    replica.
    """

    def run(self) -> LongRun:
        """Simulate the video and return its times. Most blocks of a very long video are extrapolated."""
        sample, leader = self._sample(), self.placement.denoise_ranks[0]
        if self.leader_decodes:
            seconds = sample.simulation.ends[leader] + sample.left_out_seconds
        else:
            decoder = self.placement.decode_ranks[0]
            came = [sent.end for sent in sample.simulation.sent if sent.message.ranks[1:] == (decoder,)]
            seconds = self._decoded(sample.with_left_out(came))
        done = sample.with_left_out(sample.done)
        return LongRun(seconds=seconds, denoised=done[-1], first=done[0], computing=self._computing())

    def _sample(self) -> _Sample:
        """Simulate as many blocks as it takes until they are completed at a steady pace."""
        queue, leader = self.queue, f"rank {self.placement.denoise_ranks[0]}"  # of the first replica
        assert queue.num_blocks
        # The first rank begins block-steps up to this many rounds before it collects their predictions, so
        # the video's end affects what it does that much earlier. At most one block joins in each round.
        ahead = -(-in_flight(self.grid.num_slices) // (queue.num_steps // queue.lag))
        settled = SETTLED + ahead
        while True:
            last = settled + MEASURED
            # More blocks follow, so that the queue is still full when block `last` is completed.
            left_out = max(0, queue.num_blocks - (queue.full + last + ahead + 1))
            simulation = self.simulation(left_out)
            done = [
                use.end for use in simulation.uses if use.name.startswith(DONE) and use.resource == leader
            ]
            if not left_out:  # every block was simulated
                return _Sample(simulation, done, last, left_out, pace=0.0)
            is_steady, pace = _pace(done[settled : last + 1])
            if is_steady:
                return _Sample(simulation, done, last, left_out, pace)
            settled *= 2

    def _decoded(self, came: list[float]) -> float:
        """Return the seconds after which a rank that only decodes has decoded all frame blocks.

        came: times, in seconds, at which the blocks arrive at that rank.
        """
        free = 0.0
        for block, there in enumerate(came):
            free = max(free, there) + self.decode_seconds(self.queue, block)
        return free

    @property
    def least_seconds(self) -> float:
        """Lower bound of the video's seconds: the time for which its busiest layer slice is occupied.

        The bound includes the computing of every step of every frame block. Exchanges between ranks are
        included only for the most frequent kind of step.
        """
        passes = _passes(self.queue, self.branches)
        (usual, times), *_ = passes.most_common(1)

        def busy(layers: Layers) -> float:
            computing = sum(n * max(self.steps.computing(kind, layers)) for kind, n in passes.items())
            return computing + times * self.steps.seconds(usual, layers).exposed

        # If the first rank decodes, it does so between its steps.
        seconds = {layers: busy(layers) for layers in set(self.slices)}
        first = seconds[self.slices[0]]
        return max(*seconds.values(), first + self.decode if self.leader_decodes else 0.0)

    @property
    def longest_step(self) -> float:
        """Seconds of the longest step of any frame block, for all guidance branches that a rank computes.

        It is a step with the most frames, in the layer slice that takes longest.
        """
        kind = max(_passes(self.queue, self.branches), key=lambda kind: (sum(kind[:3]), kind[3]))
        return max(self.branches) * max(self.steps.seconds(kind, layers).seconds for layers in self.slices)

    def _computing(self) -> tuple[float, ...]:
        """Return the seconds that each rank computes over the whole video."""
        placement, grid = self.placement, self.grid
        found = [0.0] * placement.replica_ranks
        for kind, number in _passes(self.queue, self.branches).items():
            each = {layers: self.steps.computing(kind, layers) for layers in set(self.slices)}
            for place, rank in enumerate(placement.denoise_ranks):
                found[rank] += number * each[self.slices[grid.slice_of(place)]][grid.place(place)]
        found[placement.decode_ranks[0]] += self.decode
        return tuple(found) * placement.replicas

    def simulation(self, fewer: int = 0) -> Simulation:
        """Simulate how the video is made, and return the times at which each rank computes and waits.

        fewer: number of frame blocks at the video's end that are left out.
        """
        assert self.queue.num_frames
        queue = replace(self.queue, num_frames=self.queue.num_frames - fewer * self.queue.block_frames)
        return simulate([self._program(rank, queue) for rank in range(self.placement.ranks)])

    def _program(self, rank: int, queue: BlockQueue) -> Iterator[Step]:
        replica, within = divmod(rank, self.placement.replica_ranks)
        first, ranks = replica * self.placement.replica_ranks, self.placement.denoise_ranks
        if within in ranks:
            place = ranks.index(within)
            if self.grid.place(place) == 0:  # it stands for all ranks that share its tokens
                yield from PipelinePrograms(self, queue, first, place).program()
        elif within in self.placement.decode_ranks:
            assert queue.num_blocks
            for block in range(queue.num_blocks):
                yield Wait(("block", first, block))
                yield Compute(f"decode block {block}", self.decode_seconds(queue, block))


def _pace(ends: Sequence[float]) -> tuple[bool, float]:
    """Return whether frame blocks are completed at a steady pace, and the mean seconds from one to the next.

    ends: completion times of consecutive blocks, in seconds.
    """
    half = len(ends) // 2
    early, late = ends[half] - ends[0], ends[-1] - ends[half]
    return abs(late - early) <= STEADY * late, (early + late) / (len(ends) - 1)


@cache
def _passes(queue: BlockQueue, branches: tuple[int, ...]) -> Counter[Kind]:
    """Return how many forward passes of each kind of step a rank computes for a video's frame blocks in all.

    Passes of one kind cost the same: they have equal numbers of latent frames (`planner.slice_step.Kind`).
    branches: number of guidance branches that the rank computes in each denoising step.
    """
    found: Counter[Kind] = Counter()
    for step in queue.steps():
        found[kind_of(step)] += branches[step.step]
    return found
