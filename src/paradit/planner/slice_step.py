"""Cost of a block-step (one step of one frame block) in one layer slice, whose ranks may share its tokens.

The exchanges between these ranks are simulated with `planner.step`. All layer slices are simulated at once,
as in the middle of a video, because messages that share a host slow each other down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from paradit.attention.patterns import FULL, Pattern
from paradit.attention.timing.windows import window_layer, window_moves
from paradit.distributed.shares import Shares
from paradit.models.spec import ModelSpec
from paradit.planner.costs import ITEMSIZE, BlockSeconds, block_seconds, replicated_rows
from paradit.planner.hardware import Cluster
from paradit.planner.step import Branch, forward
from paradit.scheduling.block_queue import BlockStep

Kind = tuple[int, int, int, int]
"""Kind of a frame block's step; steps of one kind cost the same. A kind is a tuple of four numbers of latent
frames: the block's own frames, the frames computed with them on the left, the frames computed with them on
the right, and all frames that the block attends to."""


def kind_of(step: BlockStep) -> Kind:
    return step.frames, step.left.computed, step.right.computed, step.window_frames


Layers = tuple[tuple[Pattern, int], ...]
"""Layers of a layer slice: each pattern of self-attention, and how many of the layers have it."""

SIMULATED_LAYERS = 8
"""Number of layers that are simulated together to find how long one layer's exchanges take."""


@dataclass(frozen=True)
class SliceSeconds:
    """Seconds of one step of a frame block in one layer slice."""

    computing: tuple[float, ...]
    """Seconds of computing, one number for each rank that shares the layer slice's tokens, in their order."""
    exposed: float
    """Seconds for which the rank that computes longest waits for messages."""

    @property
    def seconds(self) -> float:
        return max(self.computing) + self.exposed


@dataclass(frozen=True, eq=False)
class SliceSteps:
    """Costs of one step of a frame block on each group of ranks that share tokens.

    The costs are those of one guidance branch. Layers with the same pattern cost the same.
    """

    cluster: Cluster
    spec: ModelSpec
    dtype: str
    groups: tuple[tuple[int, ...], ...]
    """Groups of the cluster's ranks that share tokens, for all layer slices and guidance branches."""
    tokens: int
    """Number of tokens in a latent frame."""

    @cached_property
    def _slices(self) -> dict[tuple[Kind, Layers], SliceSeconds]:
        return {}

    @cached_property
    def _exposed(self) -> dict[tuple[Kind, Pattern], float]:
        return {}

    def seconds(self, kind: Kind, layers: Layers) -> SliceSeconds:
        """Return the seconds of one step of a frame block in some layers; cached.

        kind: kind of the step, which decides its cost. It is a tuple (`Kind`) of numbers of latent frames:
        the frame block's own, those computed with it on its left and on its right, and all that it attends
        to.
        """
        if (kind, layers) not in self._slices:
            exposed = sum(number * self._exposed_of(kind, pattern) for pattern, number in layers)
            self._slices[kind, layers] = SliceSeconds(self.computing(kind, layers), exposed)
        return self._slices[kind, layers]

    def computing(self, kind: Kind, layers: Layers) -> tuple[float, ...]:
        """Return the seconds for which each rank computes in one step of a frame block, in some layers.

        Exchanges between ranks are not included.
        """
        shares, found = self.shares(kind), [0.0] * len(self.groups[0])
        for pattern, number in layers:
            costs = self._costs(kind, pattern)
            for rank, (cost, work) in enumerate(zip(costs, shares.work, strict=True)):
                found[rank] += number * (3 * cost.value + cost.attention(work) + cost.finish)
        return tuple(found)

    def sent(self, kind: Kind, layers: Layers) -> list[list[float]]:
        """Return the bytes that ranks exchange in one step of a frame block whose tokens they share.

        The result is a matrix: row i, column j holds what the i-th rank sends to the j-th. Layers exchange
        equally much, whatever their pattern.
        """
        tables = [message.table for message in window_moves(self._branch(kind, self.groups[0], FULL))]
        ranks, times = range(len(self.groups[0])), sum(number for _, number in layers)
        return [[times * sum(table[i][j] for table in tables) for j in ranks] for i in ranks]

    def shares(self, kind: Kind) -> Shares:
        """Return how ranks divide a frame block's tokens and attention, as in `sampling.block_window`."""
        frames, left, right, _ = kind
        computed, heads = (left + frames + right) * self.tokens, self.spec.transformers[0].num_attention_heads
        return Shares.equal(computed, heads, len(self.groups[0]), self.text_rows)

    @cached_property
    def text_rows(self) -> int:
        """Number of text tokens that pass through the layers with the video tokens; 0 if there are none."""
        return replicated_rows(self.spec.transformers[0], self.spec.text_length)

    def _exposed_of(self, kind: Kind, pattern: Pattern) -> float:
        """Return the seconds of `SliceSeconds.exposed` for one layer with a pattern; cached."""
        if (kind, pattern) not in self._exposed:
            exposed, computing = 0.0, self.computing(kind, ((pattern, 1),))
            if len(computing) > 1:
                # All groups send at once: messages that share a host slow each other down.
                branches = [self._branch(kind, group, pattern) for group in self.groups]
                layers = [(branch, window_layer(branch)) for branch in branches]
                seconds = forward(layers, SIMULATED_LAYERS).seconds / SIMULATED_LAYERS
                exposed = max(0.0, seconds - max(computing))
            self._exposed[kind, pattern] = exposed
        return self._exposed[kind, pattern]

    def _branch(self, kind: Kind, group: tuple[int, ...], pattern: Pattern) -> Branch:
        return Branch(
            cluster=self.cluster,
            ranks=group,
            shares=self.shares(kind),
            costs=self._costs(kind, pattern),
            row_bytes=self.spec.transformers[0].attention_head_dim * ITEMSIZE[self.dtype],
            batch=1,
            pattern=pattern,
        )

    def _costs(self, kind: Kind, pattern: Pattern) -> list[BlockSeconds]:
        """Return each rank's costs of one layer with a pattern."""
        *_, window = kind
        return [
            block_seconds(
                self.spec.transformers[0],
                self.cluster.device,
                held=held,
                tokens=window * self.tokens,
                text=self.spec.text_length,
                batch=1,
                dtype=self.dtype,
                pattern=pattern,
            )
            for held in self.shares(kind).tokens
        ]
