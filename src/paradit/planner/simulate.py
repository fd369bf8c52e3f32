"""Simulation of a whole run: denoising by the method's cost model, and the stages in the engine's order.

The data that travel between stages (megabytes), files, and Python's time between steps are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from typing import cast

from paradit.attention.registry import Choice
from paradit.config.errors import InputError
from paradit.config.methods.method import find_method, method_of
from paradit.config.methods.registry import METHODS
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.spec import ModelSpec
from paradit.planner.costs import (
    ITEMSIZE,
    conditions_seconds,
    context_seconds,
    decode_seconds,
    encode_seconds,
)
from paradit.planner.hardware import Cluster
from paradit.scheduling import balance
from paradit.trace.merge import Span


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Execution plan to simulate: a placement (which ranks do what), and settings that are not part of it."""

    placement: Placement
    coprocess: bool = False
    """Whether decode ranks take a share of the attention while they are idle (co-processing)."""
    offload: bool = False
    """Whether weights move between host and device for every request; only other programs do that."""
    method: str = field(default_factory=lambda: METHODS.names()[0])
    """Name of the denoising method; the planner must have a cost model (`CostModel`) for it."""
    tile: int | None = None
    """Side of the VAE decode tiles in pixels; None: the tiles that the request and the placement ask for."""

    @property
    def cost_model(self) -> CostModel:
        """Cost model of the plan's denoising method, which simulates it."""
        return cost_model_of(self.method)

    @property
    def kind(self) -> str:
        """Kind of the plan, such as "replicas"; the best plan of each kind is shown.

        "replicas" means that groups of ranks make different videos.
        """
        return self.cost_model.kind(self)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Result of simulating an execution plan: times of its stages and videos, and memory of its ranks."""

    candidate: Candidate
    choice: Choice
    seconds: float
    """Seconds that all requests of the run take."""
    latency: float
    """Seconds that one request takes by itself."""
    first_frame: float
    """Seconds until the first frames of the first video are decoded."""
    step: float
    """Seconds of a denoising step. With co-processing, it is a step in which idle decode ranks take a share
    of the attention. For a long video, it is the longest step of a frame block."""
    stages: Mapping[str, float]
    exposed: float
    """Fraction of a denoising step for which the busiest rank waits for messages. For a long video, it is the
    fraction of the whole run for which that rank is idle."""
    idle: tuple[float, ...]
    """Fraction of the run for which each rank is idle, one number per rank. A rank is idle while it runs no
    stage (encode, denoise or decode); for a long video, while it does not compute."""
    memory: tuple[int, ...]
    """Estimated peak memory in bytes, one number per rank."""


@dataclass(frozen=True)
class LowerBound:
    """Lower bounds of an execution plan's cost, known without simulating it; fields as in `Simulated`."""

    latency: float
    seconds: float
    memory: tuple[int, ...]


class CostModel(ABC):
    """Cost model of a denoising method: simulates execution plans that use the method, and describes them."""

    approximate = ""
    """Text that follows the denoising method's name in printed messages, and says what is approximate about
    the method; empty if the method is exact."""

    @abstractmethod
    def request(self, simulator: Simulator) -> ResolvedRequest:
        """Return the request that the denoising method runs: for the whole video, or for frame blocks."""

    @abstractmethod
    def simulate(
        self, simulator: Simulator, candidate: Candidate, num_requests: int, choice: Choice
    ) -> Simulated:
        """Simulate `num_requests` requests with an execution plan, and return the plan's cost."""

    @abstractmethod
    def least(self, simulator: Simulator, candidate: Candidate, num_requests: int) -> LowerBound:
        """Return lower bounds of an execution plan's cost, without simulating it."""

    @abstractmethod
    def kind(self, candidate: Candidate) -> str:
        """Return the kind of a plan, such as "replicas" (groups of ranks make different videos).

        The best plan of each kind is shown.
        """

    @abstractmethod
    def title(self, candidate: Candidate) -> str:
        """Return the method's name for texts that people read."""

    @abstractmethod
    def name(self, candidate: Candidate, choice: Choice) -> tuple[list[str], list[str]]:
        """Return the terms that make up a plan's displayed name, in two lists.

        The first list says how the plan uses the ranks. The second says how ranks share attention; it is
        empty if they do not.
        """

    @abstractmethod
    def waits(self, simulated: Simulated) -> str:
        """Return a short text on how much a plan's ranks wait, for plans that waiting slows down most."""

    @abstractmethod
    def placement(self, simulated: Simulated) -> Placement:
        """Return the placement (which ranks do what) with which a user can run a simulated plan."""

    def candidates(self, simulator: Simulator, num_requests: int) -> Iterator[Candidate]:  # noqa: ARG002
        """Yield the plans to simulate for a long video in frame blocks; none if the method has no blocks.

        Plans for a video that is denoised as a whole are made in `planner.search`.
        """
        yield from ()

    def divided(self, candidate: Candidate) -> list[str]:  # noqa: ARG002
        """Return texts on how a plan's ranks divide layers and tokens; an empty list if they do not."""
        return []

    def sharers(self, candidate: Candidate) -> int:  # noqa: ARG002
        """Return the number of ranks that share a layer slice's tokens; 1 if the method has no slices."""
        return 1

    def tokens(self, candidate: Candidate) -> str:  # noqa: ARG002
        """Return a text on how many ranks share a layer slice's tokens; empty if the method has no slices."""
        return ""

    def stages(self, spans: Sequence[balance.Span], candidate: Candidate) -> Iterable[balance.Span]:  # noqa: ARG002
        """Return the intervals in which ranks run the stages of requests, corrected for stages that overlap.

        spans: intervals computed as if each stage began only after the previous stage had ended. A denoising
        method whose stages overlap returns changed intervals.
        """
        return spans

    @abstractmethod
    def cautions(self, simulator: Simulator) -> Iterator[str]:
        """Yield warnings about videos of the denoising method: what is not exact, or may not look right."""

    def compared(
        self,
        simulator: Simulator,  # noqa: ARG002
        simulated: Simulated,  # noqa: ARG002
        num_requests: int,  # noqa: ARG002
    ) -> Iterator[tuple[str, str, str, Simulated, bool]]:
        """Yield comparisons of a plan with plans that differ in one setting of the denoising method.

        Settings that are part of a placement (which ranks do what) are not compared here. A comparison is
        (setting, value in the plan, other value, simulation with the other value, whether the other plan fits
        in memory).
        """
        yield from ()

    @abstractmethod
    def spans(
        self, simulator: Simulator, simulated: Simulated, denoised: Sequence[balance.Span]
    ) -> Iterator[tuple[int, Span]]:
        """Yield (rank, trace span) of a simulated run's steps, messages and layers, all within its stages.

        denoised: intervals in which the requests are denoised.
        """


@cache
def cost_model_of(method: str) -> CostModel:
    """Return the cost model of a denoising method. Raises InputError if the planner has none."""
    name = find_method(method).cost_model
    if name is None:
        raise InputError(f"the planner cannot simulate method {method}")
    module, _, attribute = name.partition(":")
    return cast(CostModel, getattr(import_module(module), attribute))


def latency_of(placement: Placement, stages: Mapping[str, float]) -> float:
    """Return the seconds that one request takes by itself, whose stages take `stages`."""
    beside = 0.0
    if placement.encode_ranks[0] != placement.decode_groups[0][0]:  # texts and pictures are encoded at once
        beside = min(stages["encode"], stages.get("conditions", 0.0))
    return sum(stages.values()) - beside


@dataclass(frozen=True, eq=False)
class Simulator:
    """Simulator of execution plans that make one kind of video, with a given model on a given cluster.

    Simulated steps are cached.
    """

    cluster: Cluster
    spec: ModelSpec
    request: ResolvedRequest
    """Request to simulate, with its defaults filled in; the largest request, if a run has several."""
    dtype: str = "bf16"
    long: ResolvedRequest | None = None
    """Request for the same video in frame blocks; None if no plans with frame blocks are compared. It equals
    `request` if the video can only be made in blocks."""

    def __post_init__(self) -> None:
        """Raise InputError if the devices do not compute in the dtype."""
        self.cluster.device.check_dtype(self.dtype)

    @property
    def only_long(self) -> bool:
        """Whether the video can be made in frame blocks only."""
        return self.request == self.long

    def simulate(self, candidate: Candidate, num_requests: int, choice: Choice) -> Simulated:
        """Simulate an execution plan with an attention form, for `num_requests` requests like `request`."""
        return candidate.cost_model.simulate(self, candidate, num_requests, choice)

    def request_of(self, candidate: Candidate) -> ResolvedRequest:
        """Return the request as a plan runs it: with the plan's denoising method and its VAE decode tiles."""
        request = candidate.cost_model.request(self)
        request = candidate.placement.tiled(request, self.spec)
        return replace(request, vae_tile=candidate.tile) if candidate.tile else request

    def stages_of(self, candidate: Candidate, steps: float) -> dict[str, float]:
        """Return the seconds of each stage of one request.

        steps: seconds that all its denoising steps take together.
        """
        device, branches, request = self.cluster.device, self.branches, self.request_of(candidate)
        stages = {"encode": encode_seconds(self.spec, device, self.dtype, branches)}
        if request.has_pictures:
            stages["conditions"] = conditions_seconds(self.spec, device, request)
        stages |= {
            "denoise": self.context + steps,
            "decode": self.decode_seconds(candidate),
        }
        if candidate.offload:
            # Every rank copies each model in before its stage and drops it after; all ranks share the host's
            # memory bandwidth.
            for stage in stages:
                stages[stage] += self._weights(stage) * candidate.placement.ranks / self._copy_rate
        return stages

    @property
    def context(self) -> float:
        """Seconds that every denoise rank takes to process the prompt embeddings before the first step."""
        return context_seconds(self.spec, self.cluster.device, self.dtype, self.branches)

    def decode_seconds(self, candidate: Candidate) -> float:
        """Return the seconds to decode a video, on one rank or on several that share its tiles."""
        request, ranks = self.request_of(candidate), candidate.placement.decode_groups[0]
        size, tile, device = self.size_of(request), request.vae_tile, self.cluster.device
        computed = decode_seconds(self.spec.vae, device, "fp32", size, tile=tile, ranks=len(ranks))
        return computed + self._gather_tiles(request, ranks)

    def _gather_tiles(self, request: ResolvedRequest, ranks: tuple[int, ...]) -> float:
        """Return the seconds to gather decoded tiles (fp32) on the first rank, one latent frame at a time."""
        frames, height, width = self.size_of(request)
        grid = self.spec.vae.grid(height, width, request.vae_tile)
        # Tiles are counted in latent pixels; each becomes a square of samples in three colours.
        value = 3 * ITEMSIZE["fp32"] * self.spec.vae.spatial_compression**2 * frames
        areas = [tile.area for tile in grid.tiles]
        hands = [sum(areas[number] for number in hand) for hand in grid.dealt(len(ranks))]
        sent = [[value * float(area)] + [0.0] * (len(ranks) - 1) for area in hands]
        busy, latency = self.cluster.transfer(ranks, sent)
        return max(busy.values(), default=0.0) + latency * latent_shape(request, self.spec)[1]

    def size_of(self, request: ResolvedRequest) -> tuple[int, int, int]:
        """Return the (frames, height, width) of the VAE's output; the last frames may be cut off later."""
        _, frames, *_ = latent_shape(request, self.spec)
        return (frames - 1) * self.spec.vae.temporal_compression + 1, request.height, request.width

    @property
    def branches(self) -> int:
        """Largest number of guidance branches in a step."""
        return self.request.num_branches(self.spec)

    @cached_property
    def unguided(self) -> Simulator:
        """Simulator of the same video without guidance, whose steps have one guidance branch."""
        return replace(self, request=replace(self.request, guidance_scale=1.0, guidance_scale_2=None))

    @property
    def evaluations(self) -> tuple[int, int]:
        """Numbers of evaluations of the model with fewer than `branches` guidance branches, and with all."""
        each = zip(self.request.evaluations(self.spec), self.request.branches(self.spec), strict=True)
        counts = [(times, branches == self.branches) for times, branches in each]
        return sum(n for n, is_most in counts if not is_most), sum(n for n, is_most in counts if is_most)

    @property
    def tokens(self) -> int:
        """Number of tokens of the whole video."""
        return self.spec.tokens(*self.size_of(self.request))

    def memory_parts(self, candidate: Candidate) -> list[dict[str, int]]:
        """Return each rank's estimated bytes by part, such as "weights" or "decode", and its "peak"."""
        request, itemsize = self.request_of(candidate), ITEMSIZE[self.dtype]
        parts = method_of(request).memory_by_rank(candidate.placement, request, self.spec, itemsize)
        if not candidate.offload:
            return parts
        # Only one model is on the device at a time, and only one of two experts.
        most = max(w.parameters for w in self.spec.weights) * ITEMSIZE[self.dtype]
        spared = [max(0, of_rank["weights"] - most) for of_rank in parts]
        return [
            {**of_rank, "weights": of_rank["weights"] - less, "peak": of_rank["peak"] - less}
            for of_rank, less in zip(parts, spared, strict=True)
        ]

    def memory(self, candidate: Candidate) -> tuple[int, ...]:
        """Return the estimated peak bytes of each rank when a plan runs."""
        return tuple(parts["peak"] for parts in self.memory_parts(candidate))

    def fits(self, candidate: Candidate) -> bool:
        """Return whether each rank's estimated peak fits in the device's memory when a plan runs."""
        return max(self.memory(candidate)) <= self.cluster.device.memory

    def _weights(self, stage: str) -> int:
        size = self.size_of(self.request)
        return self.spec.rank_memory_bytes(*size, ITEMSIZE[self.dtype], (stage,))["weights"]

    @property
    def _copy_rate(self) -> float:
        # If copies from the host were not measured, they are taken to be as fast as messages.
        link = self.cluster.link
        return link.copy or link.bandwidth
