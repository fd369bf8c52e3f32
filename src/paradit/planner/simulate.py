"""A whole run, simulated: denoising by its method's player, stages by the schedule that the engine follows.

What is left out: what travels between stages (megabytes), files, and Python between steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import cast

from paradit.attention.registry import Choice
from paradit.config.errors import InputError
from paradit.config.methods.base import find_method, method_of
from paradit.config.methods.registry import METHODS
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.spec import ModelSpec
from paradit.planner.costs import (
    ITEMSIZE,
    context_seconds,
    decode_seconds,
    encode_seconds,
)
from paradit.planner.hardware import Cluster
from paradit.scheduling import balance
from paradit.trace.merge import Span


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of using the ranks: a placement, and what it cannot say."""

    placement: Placement
    coprocess: bool = False
    """Decoders that do not denoise take a share of the attention while they are idle."""
    offload: bool = False
    """Weights move between host and device for every request (a rival; ParaDiT does not do it)."""
    method: str = field(default_factory=lambda: METHODS.names()[0])
    """How it is denoised: a method that the planner has a player for."""
    tile: int | None = None
    """The side of decode tiles, in pixels; None: what the request and the placement say."""

    @property
    def player(self) -> Player:
        """What simulates it."""
        return player_of(self.method)

    @property
    def kind(self) -> str:
        """Its kind; the best of each kind is shown."""
        return self.player.kind(self)


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


class Player(ABC):
    """What the planner knows of a method: how its ways are simulated, and what is said of them."""

    approximate = ""
    """What is approximate about the method, to be said after its name; empty: it is exact."""

    @abstractmethod
    def request(self, simulator: Simulator) -> ResolvedRequest:
        """Return which of the simulator's requests it makes."""

    @abstractmethod
    def simulate(self, simulator: Simulator, way: Way, num_requests: int, choice: Choice) -> Simulated:
        """Simulate so many requests."""

    @abstractmethod
    def least(self, simulator: Simulator, way: Way, num_requests: int) -> Least:
        """Return what a way takes at least, without being played."""

    @abstractmethod
    def kind(self, way: Way) -> str:
        """Return the kind of a way; the best of each kind is shown."""

    @abstractmethod
    def title(self, way: Way) -> str:
        """Return what the method is called beside another."""

    @abstractmethod
    def name(self, way: Way, choice: Choice) -> tuple[list[str], list[str]]:
        """Return how ranks are used, and how they share attention, in words."""

    @abstractmethod
    def waits(self, simulated: Simulated) -> str:
        """Return what bounds a way whose ranks wait for much of the time."""

    @abstractmethod
    def placement(self, simulated: Simulated) -> Placement:
        """Return the placement that runs it."""

    def ways(self, simulator: Simulator, num_requests: int) -> Iterator[Way]:  # noqa: ARG002
        """The ways of making a long video, if it makes such; those of videos as a whole are in `search`."""
        yield from ()

    def divided(self, way: Way) -> list[str]:  # noqa: ARG002
        """Return how ranks divide layers and tokens, in a few words."""
        return []

    def sharers(self, way: Way) -> int:  # noqa: ARG002
        """Number of ranks that share the tokens of a pipeline's stage; 1 for a video as a whole."""
        return 1

    def tokens(self, way: Way) -> str:  # noqa: ARG002
        """Return on how many ranks a stage's tokens are, in words; empty if that is not a setting."""
        return ""

    def stages(self, spans: Sequence[balance.Span], way: Way) -> Iterable[balance.Span]:  # noqa: ARG002
        """Return when ranks are in the stages of requests, which were played one after the other."""
        return spans

    @abstractmethod
    def cautions(self, simulator: Simulator) -> Iterator[str]:
        """What is not exact, or not sure, about its videos."""

    def compared(
        self,
        simulator: Simulator,  # noqa: ARG002
        simulated: Simulated,  # noqa: ARG002
        num_requests: int,  # noqa: ARG002
    ) -> Iterator[tuple[str, str, str, Simulated, bool]]:
        """For settings that no placement has: name, both values, what comes of the other, whether it fits."""
        yield from ()

    @abstractmethod
    def spans(
        self, simulator: Simulator, simulated: Simulated, denoised: Sequence[balance.Span]
    ) -> Iterator[tuple[int, Span]]:
        """Steps, messages and layers of each rank, beside the stages. denoised: where the requests are."""


@cache
def player_of(method: str) -> Player:
    """Return what simulates a method. Raises InputError if the planner does not know it."""
    name = find_method(method).player
    if name is None:
        raise InputError(f"the planner does not know method {method}")
    module, _, attribute = name.partition(":")
    return cast(Player, getattr(import_module(module), attribute))


@dataclass(frozen=True, eq=False)
class Simulator:
    """Ways of making one kind of video with a model on a cluster. Steps that were played are remembered."""

    cluster: Cluster
    spec: ModelSpec
    request: ResolvedRequest
    """Resolved; of several, the largest."""
    dtype: str = "bf16"
    long: ResolvedRequest | None = None
    """The same in blocks, where that is to be compared. Alone, where `request` is it too."""

    def __post_init__(self) -> None:
        """Raise InputError for a dtype that the devices do not compute in."""
        self.cluster.device.check_dtype(self.dtype)

    @property
    def only_long(self) -> bool:
        """Whether the video can be made in blocks only."""
        return self.request == self.long

    def simulate(self, way: Way, num_requests: int, choice: Choice) -> Simulated:
        """A way, with a form of attention, for so many requests of the kind."""
        return way.player.simulate(self, way, num_requests, choice)

    def request_of(self, way: Way) -> ResolvedRequest:
        """As the way has it: its method, and its tiles."""
        request = way.player.request(self)
        request = way.placement.tiled(request, self.spec)
        return replace(request, vae_tile=way.tile) if way.tile else request

    def stages_of(self, way: Way, steps: float) -> dict[str, float]:
        """Seconds of each stage of one request, if its steps take so long."""
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
        size, tile, device = self.size_of(request), request.vae_tile, self.cluster.device
        computed = decode_seconds(self.spec.vae, device, "fp32", size, tile=tile, ranks=len(ranks))
        return computed + self._gather_tiles(request, ranks)

    def _gather_tiles(self, request: ResolvedRequest, ranks: tuple[int, ...]) -> float:
        """Seconds until the first rank has the others' samples, in fp32, a latent frame's at a time."""
        frames, height, width = self.size_of(request)
        grid = self.spec.vae.grid(height, width, request.vae_tile)
        value = 3 * ITEMSIZE["fp32"] * self.spec.vae.spatial_compression**2 * frames
        areas = [tile.area for tile in grid.tiles]
        hands = [sum(areas[number] for number in hand) for hand in grid.dealt(len(ranks))]
        sent = [[value * float(area)] + [0.0] * (len(ranks) - 1) for area in hands]
        busy, latency = self.cluster.transfer(ranks, sent)
        return max(busy.values(), default=0.0) + latency * latent_shape(request, self.spec)[1]

    def size_of(self, request: ResolvedRequest) -> tuple[int, int, int]:
        """Frames, of which the last may be left out, height and width."""
        _, frames, *_ = latent_shape(request, self.spec)
        return (frames - 1) * self.spec.vae.temporal_compression + 1, request.height, request.width

    @property
    def branches(self) -> int:
        return self.spec.num_branches(self.request.guidance_scale)

    @property
    def tokens(self) -> int:
        """Of the video."""
        return self.spec.tokens(*self.size_of(self.request))

    def memory_parts(self, way: Way) -> list[dict[str, int]]:
        """Estimated bytes of each rank, by part."""
        request, itemsize = self.request_of(way), ITEMSIZE[self.dtype]
        parts = method_of(request).memory_by_rank(way.placement, request, self.spec, itemsize)
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
        size = self.size_of(self.request)
        return self.spec.rank_memory_bytes(*size, ITEMSIZE[self.dtype], (stage,))["weights"]

    @property
    def _copy_rate(self) -> float:
        link = self.cluster.link
        return link.copy or link.bandwidth
