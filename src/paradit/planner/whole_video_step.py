"""Cost of a denoising step of a video denoised as a whole, not in frame blocks.

The step consists of the guidance branches on their ranks, and a final gather of the predictions. What the
ranks do in a layer is simulated by `planner.step`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Protocol

from paradit.attention.patterns import FULL, Pattern
from paradit.attention.registry import Choice
from paradit.attention.timing import layer
from paradit.config.placement import Placement
from paradit.distributed.shares import Shares
from paradit.models.spec import ModelSpec
from paradit.planner.costs import ITEMSIZE, block_seconds, replicated_rows
from paradit.planner.discrete_events import Step
from paradit.planner.hardware import Cluster
from paradit.planner.step import Branch, Forward, Layer, forward


class Video(Protocol):
    """Protocol of a video to make on a cluster, with all that decides the cost of its denoising steps."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def dtype(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def branches(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks that work on a denoising step, and how they divide it; key of cached simulations."""

    ranks: tuple[int, ...]
    helpers: tuple[int, ...]
    share: float
    replicas: int
    replica_ranks: int
    cfg_degree: int


def group_of(placement: Placement, share: float = 0.0) -> Group:
    """Return which ranks of a placement work on a denoising step, and how they divide it.

    share: part of the attention that each decode rank computes while it is idle, as a fraction of an equal
    share; 0 means that decode ranks compute none.
    """
    helpers = tuple(rank for rank in placement.decode_ranks if rank not in placement.denoise_ranks)
    return Group(
        ranks=placement.denoise_ranks,
        helpers=helpers if share else (),
        share=share,
        replicas=placement.replicas,
        replica_ranks=placement.replica_ranks,
        cfg_degree=placement.cfg_degree,
    )


@cache
def simulated_step(simulator: Video, group: Group, choice: Choice) -> Forward:
    """Return the simulated times of a denoising step. Layers of each kind are simulated by themselves."""
    parts = []
    for pattern, layers in _kinds(simulator):
        branches, streams = branches_of(simulator, group, choice, pattern)
        parts.append(forward(branches, layers, streams, choice.lag))
    computing = map(sum, zip(*(part.computing for part in parts), strict=True))
    return Forward(sum(part.seconds for part in parts) + _gather(simulator, group), tuple(computing))


def _kinds(simulator: Video) -> list[tuple[Pattern, int]]:
    """Return the patterns of a model's layers, and how many layers each has.

    One pattern stands for all those with equally many groups and pairs of queries and keys.
    """
    spec, found = simulator.spec.transformers[0], dict[tuple[int, int], tuple[Pattern, int]]()
    rows = spec.attention_rows(simulator.tokens, simulator.spec.text_length)
    for pattern, layers in spec.patterns.items():
        work = pattern.groups, pattern.pairs(rows)
        first, others = found.get(work, (pattern, 0))
        found[work] = first, others + layers
    return list(found.values())


def all_layers(simulator: Video, group: Group, choice: Choice) -> tuple[list[tuple[Branch, Layer]], int]:
    """Return what `branches_of` does, for all layers in order, each simulated by its own pattern."""
    spec = simulator.spec.transformers[0]
    by_pattern = {pattern: branches_of(simulator, group, choice, pattern) for pattern in spec.patterns}
    branches, streams = next(iter(by_pattern.values()))

    def ordered(number: int) -> Layer:
        def layer(rank: int, key: Hashable) -> Iterator[Step]:
            assert isinstance(key, tuple)  # it ends with the number of the layer
            found, _ = by_pattern[spec.pattern(key[-1]) or FULL]
            return found[number][1](rank, key)

        return layer

    return [(branch, ordered(number)) for number, (branch, _) in enumerate(branches)], streams


def branches_of(
    simulator: Video, group: Group, choice: Choice, pattern: Pattern
) -> tuple[list[tuple[Branch, Layer]], int]:
    """Return the guidance branches of all replicas, and how many streams of work each rank computes in turns.

    A replica is a group of ranks that makes its own videos. Each branch comes with the function that
    simulates the branch's layers. A stream is the work for one guidance branch. pattern: pattern of the
    layers.
    """
    spec, text = simulator.spec.transformers[0], simulator.spec.text_length
    computed = simulator.branches // group.cfg_degree
    # A single rank computes its branches one after the other. Several ranks, or one that idle decode
    # ranks help, compute them in one batch, or interleaved.
    together = len(group.ranks) + len(group.helpers) > 1 and not choice.interleave
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
            pattern=pattern,
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
                pattern=pattern,
                sparse_patterns=tuple(other for other in spec.patterns if other != FULL),
            )
            branches.append((branch, layer(branch, choice)))
    return branches, computed // batch


def _shares(simulator: Video, size: int, group: Group) -> Shares:
    spec = simulator.spec.transformers[0]
    text = replicated_rows(spec, simulator.spec.text_length)
    equal = Shares.equal(simulator.tokens, spec.num_attention_heads, size, text)
    if not group.helpers:
        return equal
    pieces = spec.num_attention_heads * equal.num_rows
    each = int(group.share * pieces / (size + len(group.helpers)))
    return equal.with_helpers([each] * len(group.helpers))


def _gather(simulator: Video, group: Group) -> float:
    """Return the seconds to gather all ranks' predictions on every rank, at the end of a step."""
    number = len(group.ranks)
    if number == 1:
        return 0.0
    spec = simulator.spec.transformers[0]
    values = spec.out_channels * prod(spec.patch_size) * ITEMSIZE[simulator.dtype] * simulator.branches
    each = simulator.tokens / number * values
    busy, latency = simulator.cluster.transfer(group.ranks, [[each] * number] * number)
    return max(busy.values()) + latency + simulator.cluster.device.posting
