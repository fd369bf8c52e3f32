"""A whole run, simulated: denoising steps by `planner.step`, stages by the schedule that the engine follows.

What is left out: what travels between stages (megabytes), files, and Python between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING

from paradit.distributed.shares import Shares
from paradit.placement import Form, Placement
from paradit.planner.costs import (
    ITEMSIZE,
    block_seconds,
    context_seconds,
    decode_seconds,
    encode_seconds,
    replicated_rows,
)
from paradit.planner.hardware import Cluster
from paradit.planner.step import Branch, Forward, forward, layer_of
from paradit.scheduling.balance import play
from paradit.scheduling.memory import memory_by_rank

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.requests import Request

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


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of a way."""

    way: Way
    form: Form
    seconds: float
    """Of all requests."""
    latency: float
    """Of one request by itself."""
    first_frame: float
    """Seconds until the first frames of the first video are there."""
    step: float
    """A denoising step; with co-processing one in which decoders help."""
    stages: Mapping[str, float]
    exposed: float
    """Which part of a step the busiest rank waits for messages."""
    idle: tuple[float, ...]
    """Which part of the run each rank is in no stage."""
    memory: tuple[int, ...]
    """Estimated peak bytes of each rank."""


@dataclass(frozen=True, eq=False)
class Simulator:
    """Ways of making one kind of video with a model on a cluster. Steps that were played are remembered."""

    cluster: Cluster
    spec: ModelSpec
    request: Request
    """Resolved; of several, the largest."""
    dtype: str = "bf16"

    def simulate(self, way: Way, num_requests: int, form: Form) -> Simulated:
        """A way, with a form of attention, for so many requests of the kind."""
        placement, steps = way.placement, self.request.num_inference_steps
        assert steps
        alone = self._step(placement, form, 0.0)
        helped = self._helped(placement, form) if way.coprocess else alone
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
            form=form,
            seconds=seconds,
            latency=latency,
            first_frame=latency - once["decode"] * (1 - 1 / self._latent_frames()),
            step=helped.seconds,
            stages=stages,
            exposed=helped.exposed / helped.seconds,
            idle=tuple(1 - part / seconds for part in busy),
            memory=self._memory(way),
        )

    def _stages(self, way: Way, steps: float) -> dict[str, float]:
        request, device = self.request, self.cluster.device
        assert request.num_frames and request.height and request.width
        branches = self.branches
        size = (request.num_frames, request.height, request.width)
        decode = decode_seconds(self.spec.vae, device, "fp32", size)
        stages = {
            "encode": encode_seconds(self.spec, device, self.dtype, branches),
            "denoise": context_seconds(self.spec, device, self.dtype, branches) + steps,
            "decode": decode,
        }
        if way.offload:
            # Every rank fetches each model before its stage, over the host's one memory, and drops it after.
            for stage in stages:
                stages[stage] += self._weights(stage) * way.placement.ranks / self._copy_rate
        return stages

    def _help(
        self, placement: Placement, stages: Mapping[str, float], steps: int, alone: float, helped: float
    ) -> float:
        """What help changes of a request's denoising: decoders give it while they are in no stage."""
        decoders = len(placement.decode_ranks)
        encodes = stages["encode"] if placement.encode_ranks[0] in placement.decode_ranks else 0.0
        busy = min(stages["denoise"], (stages["decode"] + encodes) / decoders)
        return (helped - alone) * (steps - busy / alone)

    def _helped(self, placement: Placement, form: Form) -> Forward:
        """A step with the share for decoders that makes it quickest, none included."""
        found = [self._step(placement, form, part) for part in (0.0, *HELPERS_WORK)]
        return min(found, key=lambda one: one.seconds)

    def _step(self, placement: Placement, form: Form, share: float) -> Forward:
        """share: of each helper, in parts of an equal one."""
        helpers = tuple(rank for rank in placement.decode_ranks if rank not in placement.denoise_ranks)
        return _played(
            self,
            _Group(
                ranks=placement.denoise_ranks,
                helpers=helpers if share else (),
                share=share,
                replicas=placement.replicas,
                replica_ranks=placement.replica_ranks,
                cfg_degree=placement.cfg_degree,
                ring_degree=placement.ring_ranks,
                ring_inside=placement.mesh == "ulysses,ring",
            ),
            form,
        )

    @property
    def branches(self) -> int:
        assert self.request.guidance_scale
        return self.spec.num_branches(self.request.guidance_scale)

    @property
    def tokens(self) -> int:
        """Of the video."""
        request = self.request
        assert request.num_frames and request.height and request.width
        return self.spec.tokens(request.num_frames, request.height, request.width)

    def _latent_frames(self) -> int:
        request = self.request
        assert request.num_frames and request.height and request.width
        return self.spec.vae.latent_shape(request.num_frames, request.height, request.width)[1]

    def _memory(self, way: Way) -> tuple[int, ...]:
        parts = memory_by_rank(way.placement, self.request, self.spec, ITEMSIZE[self.dtype])
        if not way.offload:
            return tuple(part["peak"] for part in parts)
        # One model at a time, of two experts the one at work.
        most = max(w.parameters for w in self.spec.weights) * ITEMSIZE[self.dtype]
        return tuple(part["peak"] - part["weights"] + min(most, part["weights"]) for part in parts)

    def _weights(self, stage: str) -> int:
        request = self.request
        assert request.num_frames and request.height and request.width
        size = (request.num_frames, request.height, request.width)
        return self.spec.rank_memory_bytes(*size, ITEMSIZE[self.dtype], (stage,))["weights"]

    @property
    def _copy_rate(self) -> float:
        link = self.cluster.link
        return link.copy or link.bandwidth


@dataclass(frozen=True, kw_only=True)
class _Group:
    """All of a placement that a step depends on."""

    ranks: tuple[int, ...]
    helpers: tuple[int, ...]
    share: float
    replicas: int
    replica_ranks: int
    cfg_degree: int
    ring_degree: int
    ring_inside: bool


@cache
def _played(simulator: Simulator, group: _Group, form: Form) -> Forward:
    spec, text = simulator.spec.transformers[0], simulator.spec.text_length
    computed = simulator.branches // group.cfg_degree
    # One process takes a branch after the other; several have them in one batch, or side by side.
    together = len(group.ranks) > 1 and not form.interleave
    batch = computed if together else 1
    size = len(group.ranks) // group.cfg_degree
    shares = _shares(simulator, size, group)
    costs = {
        held: block_seconds(
            spec,
            simulator.cluster.device,
            held=held,
            tokens=simulator.tokens,
            text=text,
            batch=batch,
            dtype=simulator.dtype,
        )
        for held in set(shares.tokens)
    }
    branches = []
    for replica in range(group.replicas):
        first = replica * group.replica_ranks
        for number in range(group.cfg_degree):
            ranks = group.ranks[number * size : (number + 1) * size] + group.helpers
            branch = Branch(
                cluster=simulator.cluster,
                ranks=tuple(first + rank for rank in ranks),
                shares=shares,
                costs=[costs[held] for held in shares.tokens],
                row_bytes=batch * spec.attention_head_dim * ITEMSIZE[simulator.dtype],
                batch=batch,
            )
            layer = layer_of(branch, form, group.ring_degree, ring_inside=group.ring_inside)
            branches.append((branch, layer))
    played = forward(branches, spec.num_layers, computed // batch, form.lag)
    return replace(played, seconds=played.seconds + _gather(simulator, group))


def _shares(simulator: Simulator, size: int, group: _Group) -> Shares:
    spec = simulator.spec.transformers[0]
    text = replicated_rows(spec, simulator.spec.text_length)
    equal = Shares.equal(simulator.tokens, spec.num_attention_heads, size, text)
    if not group.helpers:
        return equal
    pieces = spec.num_attention_heads * equal.num_rows
    each = int(group.share * pieces / (size + len(group.helpers)))
    left = pieces - each * len(group.helpers)
    work = [left * (rank + 1) // size - left * rank // size for rank in range(size)]
    return Shares(
        num_heads=spec.num_attention_heads,
        tokens=(*equal.tokens, *(0 for _ in group.helpers)),
        work=(*work, *(each for _ in group.helpers)),
        num_replicated=text,
    )


def _gather(simulator: Simulator, group: _Group) -> float:
    """Seconds until every rank has the predictions of all, at the end of a step."""
    number = len(group.ranks)
    if number == 1:
        return 0.0
    spec = simulator.spec.transformers[0]
    values = spec.out_channels * prod(spec.patch_size) * ITEMSIZE[simulator.dtype] * simulator.branches
    each = simulator.tokens / number * values
    busy, latency = simulator.cluster.transfer(group.ranks, [[each] * number] * number)
    return max(busy.values()) + latency
