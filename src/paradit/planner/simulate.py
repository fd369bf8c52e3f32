"""A whole run, simulated: denoising steps by `planner.step`, stages by the schedule that the engine follows.

Long videos in blocks by `planner.long`. What is left out: what travels between stages (megabytes), files, and
Python between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import TYPE_CHECKING

from paradit.attention.registry import Choice
from paradit.config.placement import Placement
from paradit.config.requests import latent_shape
from paradit.planner.costs import (
    ITEMSIZE,
    context_seconds,
    decode_seconds,
    encode_seconds,
)
from paradit.planner.events import Played
from paradit.planner.hardware import Cluster
from paradit.planner.long import LongVideo
from paradit.planner.stage_step import StageSteps
from paradit.planner.step import Forward, play_layers
from paradit.planner.whole_step import Group, branches_of, group_of, simulated_step
from paradit.scheduling.balance import play
from paradit.scheduling.memory import memory_by_rank

if TYPE_CHECKING:
    from paradit.config.requests import Request
    from paradit.models.spec import ModelSpec

HELPERS_WORK = (1.0, 0.75, 0.5, 0.25)
"""Shares of a co-processing decoder that are tried, in parts of an equal one."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of using the ranks: a placement, and what it cannot say."""

    placement: Placement
    coprocess: bool = False
    """Decoders that do not denoise take a share of the attention while they are idle."""
    offload: bool = False
    """Weights move between host and device for every request (a rival; ParaDiT does not do it)."""
    method: str = "full"
    """How it is denoised: one of `config.requests.METHODS`."""
    tile: int | None = None
    """The side of decode tiles, in pixels; None: what the request and the placement say."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of a way."""

    way: Way
    choice: Choice
    seconds: float
    """Of all requests."""
    latency: float
    """Of one request by itself."""
    first_frame: float
    """Seconds until the first frames of the first video are there."""
    step: float
    """A denoising step; with co-processing one in which decoders help; of a block, on the slowest rank."""
    stages: Mapping[str, float]
    exposed: float
    """Which part of a step the busiest rank waits for messages; of a long video's denoising, waits at all."""
    idle: tuple[float, ...]
    """Which part of the run each rank is in no stage."""
    memory: tuple[int, ...]
    """Estimated peak bytes of each rank."""


@dataclass(frozen=True)
class Least:
    """What a way takes at least, as of `Simulated`."""

    latency: float
    seconds: float
    memory: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Simulator:
    """Ways of making one kind of video with a model on a cluster. Steps that were played are remembered."""

    cluster: Cluster
    spec: ModelSpec
    request: Request
    """Resolved; of several, the largest."""
    dtype: str = "bf16"
    long: Request | None = None
    """The same in blocks, where that is to be compared. Alone, where `request` is it too."""

    def __post_init__(self) -> None:
        """Raise InputError for a dtype that the devices do not compute in."""
        self.cluster.device.check_dtype(self.dtype)

    def simulate(self, way: Way, num_requests: int, choice: Choice) -> Simulated:
        """A way, with a form of attention, for so many requests of the kind."""
        if way.method == "dualparal":
            return self._simulate_long(way, num_requests, choice)
        placement, steps = way.placement, self.request.num_inference_steps
        assert steps
        alone = self._step(placement, choice)
        helped = self._helped(placement, choice) if way.coprocess else alone
        stages = self._stages(way, steps * alone.seconds)
        once = dict(stages)
        if way.coprocess:
            once["denoise"] += steps * (helped.seconds - alone.seconds)
            stages["denoise"] += self._help(placement, stages, steps, alone.seconds, helped.seconds)
            if num_requests == 1:
                stages = once
        spans = play(placement, num_requests, stages)
        seconds = max(span.end for span in spans)
        busy = [0.0] * placement.ranks
        for span in spans:
            for rank in span.ranks:
                busy[rank] += span.end - span.start
        latency = sum(once.values())
        return Simulated(
            way=way,
            choice=choice,
            seconds=seconds,
            latency=latency,
            first_frame=latency - once["decode"] * (1 - 1 / latent_shape(self.request, self.spec)[1]),
            step=helped.seconds,
            stages=stages,
            exposed=helped.exposed / helped.seconds,
            idle=tuple(1 - part / seconds for part in busy),
            memory=self.memory(way),
        )

    def _simulate_long(self, way: Way, num_requests: int, choice: Choice) -> Simulated:
        video, placement = self.long_video(way), way.placement
        run = video.run()
        stages = self._stages(way, run.denoised)
        stages["decode"] = run.seconds - run.denoised
        before = sum(stages.values()) - run.seconds
        seconds = max(span.end for span in play(placement, num_requests, stages))
        videos = num_requests / placement.replicas
        return Simulated(
            way=way,
            choice=choice,
            seconds=seconds,
            latency=before + run.seconds,
            first_frame=before + run.first + video.decode / latent_shape(video.request, self.spec)[1],
            step=video.longest_step,
            stages=stages,
            exposed=1 - max(run.computing) / run.seconds,
            idle=tuple(1 - videos * computing / seconds for computing in run.computing),
            memory=self.memory(way),
        )

    def long_video(self, way: Way) -> LongVideo:
        """What is played of a long video's way."""
        return _long_video(self, way)

    def least(self, way: Way, num_requests: int) -> Least:
        """What a long video's way takes at least, without being played."""
        least = self.long_video(way).least_seconds
        latency = sum(self._stages(way, least).values()) - self.decode_seconds(way)
        each = ceil(num_requests / way.placement.replicas) * least
        return Least(latency, max(latency, each), self.memory(way))

    def request_of(self, way: Way) -> Request:
        """As the way has it: its method, and its tiles."""
        request = self.long if way.method == "dualparal" else self.request
        assert request is not None
        request = way.placement.tiled(request, self.spec)
        return replace(request, vae_tile=way.tile) if way.tile else request

    def _stages(self, way: Way, steps: float) -> dict[str, float]:
        device, branches = self.cluster.device, self.branches
        stages = {
            "encode": encode_seconds(self.spec, device, self.dtype, branches),
            "denoise": self.context + steps,
            "decode": self.decode_seconds(way),
        }
        if way.offload:
            # Every rank fetches each model before its stage, over the host's one memory, and drops it after.
            for stage in stages:
                stages[stage] += self._weights(stage) * way.placement.ranks / self._copy_rate
        return stages

    @property
    def context(self) -> float:
        """Seconds that every rank which denoises takes for the texts, before the first step."""
        return context_seconds(self.spec, self.cluster.device, self.dtype, self.branches)

    def decode_seconds(self, way: Way) -> float:
        """Of a video's decode, by one rank or by several that share its tiles."""
        request, ranks = self.request_of(way), way.placement.decode_groups[0]
        size, tile, device = self._size(request), request.vae_tile, self.cluster.device
        computed = decode_seconds(self.spec.vae, device, "fp32", size, tile=tile, ranks=len(ranks))
        return computed + self._gather_tiles(request, ranks)

    def _gather_tiles(self, request: Request, ranks: tuple[int, ...]) -> float:
        """Seconds until the first rank has the others' samples, in fp32, a latent frame's at a time."""
        frames, height, width = self._size(request)
        grid = self.spec.vae.grid(height, width, request.vae_tile)
        value = 3 * ITEMSIZE["fp32"] * self.spec.vae.spatial_compression**2 * frames
        areas = [tile.area for tile in grid.tiles]
        hands = [sum(areas[number] for number in hand) for hand in grid.dealt(len(ranks))]
        sent = [[value * float(area)] + [0.0] * (len(ranks) - 1) for area in hands]
        busy, latency = self.cluster.transfer(ranks, sent)
        return max(busy.values(), default=0.0) + latency * latent_shape(request, self.spec)[1]

    def _size(self, request: Request) -> tuple[int, int, int]:
        """Frames, of which the last may be left out, height and width."""
        _, frames, *_ = latent_shape(request, self.spec)
        assert request.height and request.width
        return (frames - 1) * self.spec.vae.temporal_compression + 1, request.height, request.width

    def _help(
        self, placement: Placement, stages: Mapping[str, float], steps: int, alone: float, helped: float
    ) -> float:
        """What help changes of a request's denoising: decoders give it while they are in no stage."""
        decoders = len(placement.decode_groups)
        encodes = stages["encode"] if placement.encode_ranks[0] in placement.decode_ranks else 0.0
        busy = min(stages["denoise"], (stages["decode"] + encodes) / decoders)
        return (helped - alone) * (steps - busy / alone)

    def _helped(self, placement: Placement, choice: Choice) -> Forward:
        """A step with the share for decoders that makes it quickest, none included."""
        return simulated_step(self, self._helped_group(placement, choice), choice)

    def _helped_group(self, placement: Placement, choice: Choice) -> Group:
        groups = [group_of(placement, part) for part in (0.0, *HELPERS_WORK)]
        return min(groups, key=lambda group: simulated_step(self, group, choice).seconds)

    def _step(self, placement: Placement, choice: Choice) -> Forward:
        return simulated_step(self, group_of(placement), choice)

    def played_step(self, way: Way, choice: Choice) -> tuple[Played, list[int]]:
        """A denoising step, every layer played, and the cluster's ranks that take part, in its order."""
        group = self._helped_group(way.placement, choice) if way.coprocess else group_of(way.placement)
        branches, streams = branches_of(self, group, choice)
        played = play_layers(branches, self.spec.transformers[0].num_layers, streams, choice.lag)
        return played, sorted(rank for branch, _ in branches for rank in branch.ranks)

    @property
    def branches(self) -> int:
        assert self.request.guidance_scale
        return self.spec.num_branches(self.request.guidance_scale)

    @property
    def tokens(self) -> int:
        """Of the video."""
        return self.spec.tokens(*self._size(self.request))

    def memory_parts(self, way: Way) -> list[dict[str, int]]:
        """Estimated bytes of each rank, by part."""
        parts = memory_by_rank(way.placement, self.request_of(way), self.spec, ITEMSIZE[self.dtype])
        if not way.offload:
            return parts
        # One model at a time, of two experts the one at work.
        most = max(w.parameters for w in self.spec.weights) * ITEMSIZE[self.dtype]
        spared = [max(0, of_rank["weights"] - most) for of_rank in parts]
        return [
            {**of_rank, "weights": of_rank["weights"] - less, "peak": of_rank["peak"] - less}
            for of_rank, less in zip(parts, spared, strict=True)
        ]

    def memory(self, way: Way) -> tuple[int, ...]:
        """Estimated peak bytes of each rank."""
        return tuple(parts["peak"] for parts in self.memory_parts(way))

    def fits(self, way: Way) -> bool:
        """Whether there is memory for a way, by these estimates."""
        return max(self.memory(way)) <= self.cluster.device.memory

    def _weights(self, stage: str) -> int:
        size = self._size(self.request)
        return self.spec.rank_memory_bytes(*size, ITEMSIZE[self.dtype], (stage,))["weights"]

    @property
    def _copy_rate(self) -> float:
        link = self.cluster.link
        return link.copy or link.bandwidth


@cache
def _long_video(simulator: Simulator, way: Way) -> LongVideo:
    return LongVideo(
        cluster=simulator.cluster,
        spec=simulator.spec,
        request=simulator.request_of(way),
        placement=way.placement,
        dtype=simulator.dtype,
        decode=simulator.decode_seconds(way),
        known=_known_steps(simulator),
    )


@cache
def _known_steps(simulator: Simulator) -> dict[tuple[tuple[int, ...], ...], StageSteps]:  # noqa: ARG001
    return {}
