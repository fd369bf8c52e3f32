"""Cost model of DualParal, which makes long videos in frame blocks on a pipeline of layer slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from math import ceil

from paradit.attention.registry import Choice
from paradit.config.errors import InputError
from paradit.config.methods.dualparal import QueueRequest, num_slices, with_slices
from paradit.config.methods.method import check_placement
from paradit.config.placement import Placement
from paradit.planner.long_video import LongVideo
from paradit.planner.simulate import Candidate, CostModel, LowerBound, Simulated, Simulator, latency_of
from paradit.planner.slice_step import SliceSteps
from paradit.planner.timeline import simulated_spans
from paradit.scheduling import balance
from paradit.scheduling.balance import candidate_placements, name_of, simulate
from paradit.scheduling.block_queue import LEFT_SOURCES, ONE_CLEANER, SAME_LEVEL
from paradit.trace.merge import Span
from paradit.trace.spans import CHANNEL, STEP


class InBlocks(CostModel):
    """Cost model of long videos that a layer pipeline denoises as a queue of frame blocks."""

    approximate = "is approximate: a frame sees only its block and some neighbours"

    def request(self, simulator: Simulator) -> QueueRequest:
        assert isinstance(simulator.long, QueueRequest)
        return simulator.long

    def simulate(
        self, simulator: Simulator, candidate: Candidate, num_requests: int, choice: Choice
    ) -> Simulated:
        video, placement = long_video(simulator, candidate), candidate.placement
        run = video.run()
        # Most blocks are decoded while later ones are denoised. What is left after the last step counts as
        # the decode stage.
        stages = simulator.stages_of(candidate, run.denoised)
        stages["decode"] = run.seconds - run.denoised
        before = latency_of(placement, stages) - run.seconds  # until texts and pictures are encoded
        seconds = max(span.end for span in simulate(placement, num_requests, stages))
        videos = num_requests / placement.replicas
        return Simulated(
            candidate=candidate,
            choice=choice,
            seconds=seconds,
            latency=before + run.seconds,
            first_frame=before + run.first + video.decode / (video.queue.num_frames or 1),
            step=video.longest_step,
            stages=stages,
            exposed=1 - max(run.computing) / run.seconds,
            idle=tuple(1 - videos * computing / seconds for computing in run.computing),
            memory=simulator.memory(candidate),
        )

    def least(self, simulator: Simulator, candidate: Candidate, num_requests: int) -> LowerBound:
        least = long_video(simulator, candidate).least_seconds
        # Blocks are decoded while others are denoised, so a lower bound must not add the decode.
        latency = latency_of(candidate.placement, simulator.stages_of(candidate, least))
        latency -= simulator.decode_seconds(candidate)
        each = ceil(num_requests / candidate.placement.replicas) * least
        return LowerBound(latency, max(latency, each), simulator.memory(candidate))

    def kind(self, candidate: Candidate) -> str:
        return "in blocks, replicas" if candidate.placement.replicas > 1 else "in blocks"

    def title(self, candidate: Candidate) -> str:
        return candidate.method

    def name(self, candidate: Candidate, choice: Choice) -> tuple[list[str], list[str]]:  # noqa: ARG002
        slices, sharers = num_slices(candidate.placement), self.sharers(candidate)
        parts = [f"{candidate.method} (approximate), {slices} layer slice{'s' * (slices != 1)}"]
        parts += [f"tokens on {sharers} ranks"] if sharers > 1 else []
        kind = name_of(candidate.placement)
        return parts + ([kind] if kind != "together" else []), []

    def waits(self, simulated: Simulated) -> str:
        return f"the pipeline: its busiest rank waits {100 * simulated.exposed:.0f} % of the time"

    def placement(self, simulated: Simulated) -> Placement:
        return simulated.candidate.placement

    def candidates(self, simulator: Simulator, num_requests: int) -> Iterator[Candidate]:
        for placement in pipelines(simulator, num_requests):
            yield Candidate(placement=placement, method=self.request(simulator).method)

    def divided(self, candidate: Candidate) -> list[str]:
        slices, sharers = num_slices(candidate.placement), self.sharers(candidate)
        parts = [f"{slices} layer slice{'s' * (slices > 1)}"] if slices else []
        return parts + ([f"tokens on {sharers} ranks"] if sharers > 1 else [])

    def sharers(self, candidate: Candidate) -> int:
        return candidate.placement.branch_ranks // (num_slices(candidate.placement) or 1)

    def tokens(self, candidate: Candidate) -> str:
        sharers = self.sharers(candidate)
        return f"on {sharers} ranks" if sharers > 1 else "on one rank"

    def stages(self, spans: Sequence[balance.Span], candidate: Candidate) -> Iterator[balance.Span]:
        began = {one.request: one.start for one in spans if one.stage == "denoise"}
        for one in spans:
            if one.stage == "decode":  # decoding begins with the first finished block
                yield replace(one, start=began[one.request])
            elif one.stage == "denoise":
                # A rank that decodes blocks as it denoises them has one span for both, as in the trace.
                apart = (rank for rank in one.ranks if "decode" not in candidate.placement.stages_of(rank))
                yield replace(one, ranks=tuple(apart))
            else:
                yield one

    def cautions(self, simulator: Simulator) -> Iterator[str]:
        long = self.request(simulator)
        cached = ", those before it by keys kept from the last round" if long.left_context == "cache" else ""
        ahead = f"; the block before is {long.lag} steps ahead" if long.lag > 1 else ""
        yield (
            f"{long.method} is approximate: each block of {long.block_frames} latent frames sees only "
            f"{long.context_frames} of each neighbour{cached}{ahead}. The first frames come with the first "
            "block"
        )

    def compared(
        self, simulator: Simulator, simulated: Simulated, num_requests: int
    ) -> Iterator[tuple[str, str, str, Simulated, bool]]:
        """Yield comparisons of a plan with one that differs only in the left context's source, or in the lag.

        The left context of a frame block is the end of the previous block. Its keys and values are either
        read from a cache, or computed again from the latents. With a lag, blocks join the queue less often. A
        comparison is (setting, value in the plan, other value, simulation with the other value, whether the
        other plan fits in memory).
        """
        long, others = self.request(simulator), []
        if long.left_level != ONE_CLEANER:  # the cache does not have that level
            (source,) = (one for one in LEFT_SOURCES if one != long.left_context)
            others.append(("left context", long.left_context, source, replace(long, left_context=source)))
        if long.lag > 1:
            others.append(("lag", str(long.lag), "1", replace(long, lag=1, left_level=SAME_LEVEL)))
        for setting, value, other_value, changed in others:
            whole = changed if simulator.only_long else simulator.request
            instead = replace(simulator, request=whole, long=changed)
            other = instead.simulate(simulated.candidate, num_requests, simulated.choice)
            yield setting, value, other_value, other, instead.fits(simulated.candidate)

    def spans(
        self, simulator: Simulator, simulated: Simulated, denoised: Sequence[balance.Span]
    ) -> Iterator[tuple[int, Span]]:
        """Yield (rank, trace span) pairs of a simulated run: steps of frame blocks, messages, and waits."""
        placement = simulated.candidate.placement
        video, size = long_video(simulator, simulated.candidate), placement.replica_ranks
        simulation = video.simulation()
        # Only the first of the ranks that share tokens is simulated; its spans stand for all of them.
        groups = {group[0]: group for group in video.steps.groups}
        programs = [groups.get(rank, (rank,)) for rank in range(placement.ranks)]
        for one in denoised:
            replica, start = one.ranks[0] // size, one.start + simulator.context
            for rank, span in simulated_spans(simulation, programs, start, STEP, CHANNEL):
                if rank // size == replica:
                    yield rank, span


def pipelines(simulator: Simulator, num_prompts: int) -> Iterator[Placement]:
    """Yield candidate placements (which ranks do what) for a long video that a layer pipeline makes.

    The layer pipelines have any number of layer slices. A placement has as many ranks as the cluster, or a
    divisor of that number. Guidance branches use the same ranks, or each branch has ranks of its own. If a
    layer slice has several ranks, they share its tokens.
    """
    ranks, long = simulator.cluster.ranks, simulator.long
    assert long is not None
    for degree in (number for number in range(ranks, 0, -1) if ranks % number == 0):
        for placement in candidate_placements(Placement(ranks=degree), num_prompts):
            # A single decode rank keeps up with many denoise ranks, so more are never worth trying.
            if placement.decode is not None and len(placement.decode) > 1:
                continue
            for cfg_degree in range(1, simulator.branches + 1):
                for slices in range(len(placement.denoise_ranks) // cfg_degree, 0, -1):
                    with suppress(InputError):  # for example, more layer slices than layers
                        divided = with_slices(replace(placement, cfg_degree=cfg_degree), slices)
                        check_placement(divided, long, simulator.spec)
                        yield divided


@cache
def long_video(simulator: Simulator, candidate: Candidate) -> LongVideo:
    """Return a simulation, not run yet, of a long video that is made with an execution plan; cached."""
    request = simulator.request_of(candidate)
    assert isinstance(request, QueueRequest)
    return LongVideo(
        cluster=simulator.cluster,
        spec=simulator.spec,
        request=request,
        placement=candidate.placement,
        dtype=simulator.dtype,
        decode=simulator.decode_seconds(candidate),
        known=_known_steps(simulator),
    )


@cache  # so that all long videos of a simulator share one dict
def _known_steps(simulator: Simulator) -> dict[tuple[tuple[int, ...], ...], SliceSteps]:  # noqa: ARG001
    return {}


IN_BLOCKS = InBlocks()
