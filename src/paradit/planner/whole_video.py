"""Cost model of videos denoised as a whole (not in frame blocks), in steps that all cost the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from paradit.attention.registry import Choice
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.planner.discrete_events import Simulation
from paradit.planner.simulate import Candidate, CostModel, LowerBound, Simulated, Simulator, latency_of
from paradit.planner.step import simulate_layers
from paradit.planner.timeline import simulated_spans, span_of
from paradit.planner.whole_video_step import Group, all_layers, group_of, simulated_step
from paradit.scheduling import balance
from paradit.scheduling.balance import name_of, simulate
from paradit.trace.merge import Span
from paradit.trace.spans import EXCHANGE, LAYER, STEP

HELPERS_WORK = (1.0, 0.75, 0.5, 0.25)
"""Shares of the attention that are tried for a decode rank that helps with attention while it is idle, as
fractions of an equal share."""


class Whole(CostModel):
    """Cost model of the full-sequence method, which denoises all latents of a video at once."""

    def request(self, simulator: Simulator) -> ResolvedRequest:
        return simulator.request

    def simulate(
        self, simulator: Simulator, candidate: Candidate, num_requests: int, choice: Choice
    ) -> Simulated:
        placement, (unguided, steps) = candidate.placement, simulator.evaluations
        alone = simulated_step(simulator, group_of(placement), choice)
        helped = alone
        if candidate.coprocess:
            helped = simulated_step(simulator, helped_group(simulator, placement, choice), choice)
        all_steps = steps * alone.seconds
        if unguided:
            # They are taken to be without help from idle decode ranks.
            all_steps += unguided * simulated_step(simulator.unguided, group_of(placement), choice).seconds
        stages = simulator.stages_of(candidate, all_steps)
        once = dict(stages)
        if candidate.coprocess:
            # A video by itself is helped in all its steps. Among others, decoders are busy for some of them.
            once["denoise"] += steps * (helped.seconds - alone.seconds)
            stages["denoise"] += _help(placement, stages, steps, alone.seconds, helped.seconds)
            if num_requests == 1:
                stages = once
        spans = simulate(placement, num_requests, stages)
        seconds = max(span.end for span in spans)
        busy = [0.0] * placement.ranks
        for span in spans:
            for rank in span.ranks:
                busy[rank] += span.end - span.start
        latency = latency_of(placement, once)
        frames = latent_shape(simulator.request, simulator.spec)[1]
        return Simulated(
            candidate=candidate,
            choice=choice,
            seconds=seconds,
            latency=latency,
            first_frame=latency - once["decode"] * (1 - 1 / frames),
            step=helped.seconds,
            stages=stages,
            exposed=helped.exposed / helped.seconds,
            idle=tuple(1 - part / seconds for part in busy),
            memory=simulator.memory(candidate),
        )

    def least(self, simulator: Simulator, candidate: Candidate, num_requests: int) -> LowerBound:
        raise NotImplementedError("videos as a whole are simulated at once")

    def kind(self, candidate: Candidate) -> str:
        """Return a plan's kind: "together", "apart" or "replicas", perhaps followed by ", co-processing".

        "Apart" means that some ranks decode but do not denoise, "replicas" that groups of ranks make
        different videos.
        """
        if candidate.placement.replicas > 1:
            return "replicas"
        kind = "apart" if name_of(candidate.placement).startswith("apart") else "together"
        return f"{kind}, co-processing" if candidate.coprocess else kind

    def title(self, candidate: Candidate) -> str:  # noqa: ARG002
        return "full sequence"

    def name(self, candidate: Candidate, choice: Choice) -> tuple[list[str], list[str]]:
        shared = []
        if candidate.placement.branch_ranks > 1:
            shared = [choice.form.written(choice.options, short=True)]
            shared += ["interleaved"] if choice.interleave else []
        return [name_of(candidate.placement)], shared

    def waits(self, simulated: Simulated) -> str:
        return f"messages: a step waits for them {100 * simulated.exposed:.0f} % of its time"

    def placement(self, simulated: Simulated) -> Placement:
        candidate = simulated.candidate
        return replace(candidate.placement.chosen(simulated.choice), coprocess=candidate.coprocess)

    def cautions(self, simulator: Simulator) -> Iterator[str]:
        if simulator.long is None:
            return
        trained, ratio = simulator.spec.trained_latent_frames, simulator.spec.vae.temporal_compression
        yield (
            f"full sequence denoises {simulator.request.num_frames} frames at once, but the model was "
            f"trained on up to {(trained - 1) * ratio + 1}: exact, but the motion may break"
        )

    def spans(
        self, simulator: Simulator, simulated: Simulated, denoised: Sequence[balance.Span]
    ) -> Iterator[tuple[int, Span]]:
        """Yield (rank, trace span) pairs of a simulated run.

        There are spans for all steps and, within the first step, for layers, messages and waits.
        """
        steps = sum(simulator.evaluations)
        for one in denoised:
            length = (one.end - one.start) / steps  # steps with and without help are drawn alike
            for number in range(steps):
                begin = one.start + number * length
                for rank in one.ranks:
                    yield rank, span_of(f"step {number + 1}", STEP, begin, begin + length)
        simulation, ranks = simulated_layers(simulator, simulated.candidate, simulated.choice)
        first = min(one.start for one in denoised)
        yield from simulated_spans(simulation, [(rank,) for rank in ranks], first, LAYER, EXCHANGE)


def simulated_layers(
    simulator: Simulator, candidate: Candidate, choice: Choice
) -> tuple[Simulation, list[int]]:
    """Simulate all layers of a denoising step.

    Returns the result, and the cluster's ranks that take part, in ascending order.
    """
    group = group_of(candidate.placement)
    if candidate.coprocess:
        group = helped_group(simulator, candidate.placement, choice)
    branches, streams = all_layers(simulator, group, choice)
    simulation = simulate_layers(branches, simulator.spec.transformers[0].num_layers, streams, choice.lag)
    return simulation, sorted(rank for branch, _ in branches for rank in branch.ranks)


def helped_group(simulator: Simulator, placement: Placement, choice: Choice) -> Group:
    """Return the fastest division of a denoising step in which idle decode ranks may help with attention.

    Compares a step without help, and a step with each amount of help in `HELPERS_WORK`.
    """
    groups = [group_of(placement, part) for part in (0.0, *HELPERS_WORK)]
    return min(groups, key=lambda group: simulated_step(simulator, group, choice).seconds)


def _help(
    placement: Placement, stages: Mapping[str, float], steps: int, alone: float, helped: float
) -> float:
    """Return by how many seconds a request's denoising changes if idle decode ranks help; usually negative.

    They help by computing a share of the attention while they run no stage. alone, helped: seconds of a step
    without help and with help.
    """
    # While a request is denoised, each decoder also decodes, and perhaps encodes, its part of the others.
    decoders = len(placement.decode_groups)
    encodes = stages["encode"] if placement.encode_ranks[0] in placement.decode_ranks else 0.0
    encodes += stages.get("conditions", 0.0)
    busy = min(stages["denoise"], (stages["decode"] + encodes) / decoders)
    return (helped - alone) * (steps - busy / alone)


WHOLE = Whole()
