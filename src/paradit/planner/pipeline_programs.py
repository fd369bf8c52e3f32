"""Programs that the simulator runs for a layer pipeline's ranks; they mirror `sampling.block_pipeline`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import repeat

from paradit.planner.costs import ITEMSIZE
from paradit.planner.discrete_events import Compute, Message, Post, Step, Wait
from paradit.planner.pipeline_video import PipelineVideo
from paradit.planner.slice_step import Kind, kind_of
from paradit.scheduling.block_queue import BlockQueue, BlockStep
from paradit.scheduling.layer_pipeline import Collect, Operation, program

AHEAD = 2
"""Number of receives that a rank has begun in advance: while it waits for one message, it already receives
this many of the next ones (as `distributed.tensor_queue.Expected` does)."""

DONE = "latents of block "
"""Prefix of the name of a simulated event, followed by the index of a frame block. The event marks when the
first rank has the block's denoised latents."""


@cache
def _operations(queue: BlockQueue, num_slices: int, is_leader: bool) -> list[tuple[Operation, Kind]]:
    """Return a pipeline rank's operations in order, each with the kind of the step that it belongs to.

    The step is one denoising step of one frame block. Its cost depends on its kind, which is a tuple of frame
    counts (`planner.slice_step.Kind`). All ranks have the same operations, except the leader (first rank),
    which also collects the predictions.
    """
    found = program(queue, num_slices, 0 if is_leader else 1)
    return [(operation, kind_of(operation.step)) for operation in found]


class PipelinePrograms:
    """Simulated program of one group of a layer pipeline's ranks, which share tokens.

    The group is simulated as a single rank, which posts the messages of all ranks of the group.
    """

    def __init__(self, video: PipelineVideo, queue: BlockQueue, first: int, place: int) -> None:
        """Set up the program of one group of ranks that share tokens.

        The group belongs to a data parallel replica, that is a group of ranks that makes its own videos.
        first: number, in the cluster, of the replica's first rank. place: index of the group's first rank
        among the replica's denoise ranks.
        """
        self._video, self._queue, self._pipe, self._place = video, queue, first, place
        self._grid = grid = video.grid
        self._ranks = [first + rank for rank in video.placement.denoise_ranks]
        self._slice, self._is_leader = grid.slice_of(place), place == 0
        self._is_last = self._slice == grid.num_slices - 1
        self._operations = _operations(queue, grid.num_slices, self._is_leader)
        computed = [one for one in self._operations if not isinstance(one[0], Collect)]
        self._kinds = [kind for _, kind in computed]
        self._hops = [
            kind for operation, kind in computed for _ in range(video.branches[operation.step.step])
        ]
        """Kind of the step of each message with hidden states: one for each guidance branch of a step."""
        self._messages: dict[tuple[str, int, Kind], Message] = {}
        slice_ranks, sharers = grid.slice_ranks, grid.sharers
        self._mates = range(0, slice_ranks, sharers)
        """Indices, among the denoise ranks, of the first rank of each group that shares tokens in the first
        layer slice."""
        self._senders = range(grid.num_ranks - slice_ranks, grid.num_ranks, sharers)
        """Indices, among the denoise ranks, of the first rank of each group that shares tokens in the last
        layer slice. These groups send predictions to the first denoise rank."""

    def program(self) -> Iterator[Step]:
        """Yield the group's simulated steps, in order: computing, posting (beginning) messages, and waiting.

        The order is that of the real program, `sampling.block_pipeline.BlockPipeline.blocks`.
        """
        if self._slice:
            for index in range(min(AHEAD, len(self._hops))):
                yield from self._hop(self._place - self._grid.slice_ranks, index)
        if self._is_leader:
            for index in range(min(AHEAD, len(self._kinds))):
                yield from self._predictions(index)
        computed = collected = hops = 0
        for operation, kind in self._operations:
            if isinstance(operation, Collect):
                yield from self._collect(operation.step, collected)
                collected += 1
                continue
            yield from self._share(computed)
            name = f"block {operation.step.block}, step {operation.step.step}"
            for _ in range(self._video.branches[operation.step.step]):
                yield from self._compute(name, kind, hops)
                hops += 1
            if self._is_last:
                yield from self._prediction(self._place, computed, as_leader=False)
            computed += 1

    def _share(self, index: int) -> Iterator[Step]:
        """Yield the steps in which latents pass from the first rank to the others of the first layer slice.

        index: serial number of the block-step (one step of one frame block) that the latents are for.
        """
        if self._slice == 0 and not self._is_leader:
            yield Wait(("latents", self._pipe, self._place, index))
        for mate in self._mates if self._is_leader else ():
            message = self._message("latents", mate, self._kinds[index])
            if len(message.ranks) == 1:
                continue
            yield from repeat(Post(("latents", self._pipe, mate, index), message), len(message.ranks))
            if mate == 0:  # the leader's own group begins once all its ranks have the latents
                yield Wait(("latents", self._pipe, mate, index))
            elif index >= AHEAD:  # at most two messages of each channel are on their way
                yield Wait(("latents", self._pipe, mate, index - AHEAD))

    def _compute(self, name: str, kind: Kind, index: int) -> Iterator[Step]:
        before = self._place - self._grid.slice_ranks
        if self._slice:
            if index + AHEAD < len(self._hops):
                yield from self._hop(before, index + AHEAD)
            yield Wait(("hop", self._pipe, before, index))
        # Ranks that share tokens wait for each other in every layer, so the slowest sets the pace.
        yield Compute(name, max(self._video.step_seconds(self._slice, kind).computing))
        if self._grid.sharers > 1:
            key = "exchanges", self._pipe, self._place, index
            yield from repeat(Post(key, self._message("exchanges", self._place, kind)), self._grid.sharers)
            yield Wait(key)
        if not self._is_last:
            yield from self._hop(self._place, index)
            if index >= AHEAD:  # the channel holds `HOP_DEPTH` messages, so an older one must have left it
                yield Wait(("hop", self._pipe, self._place, index - AHEAD))

    def _collect(self, step: BlockStep, index: int) -> Iterator[Step]:
        if index + AHEAD < len(self._kinds):
            yield from self._predictions(index + AHEAD)
        for sender in self._senders:
            if len(self._message("prediction", sender, self._kinds[index]).ranks) > 1:
                yield Wait(("prediction", self._pipe, sender, index))
        if step.step < self._queue.num_steps - 1:  # the block is not finished yet
            return
        yield Compute(f"{DONE}{step.block}", 0.0)
        video = self._video
        if video.leader_decodes:
            yield Compute(f"decode block {step.block}", video.decode_seconds(self._queue, step.block))
            return
        message = video.block_message(self._pipe, step.frames)
        yield from repeat(Post(("block", self._pipe, step.block), message), 2)

    def _hop(self, place: int, index: int) -> Iterator[Post]:
        """Yield the simulated operations that begin a message with hidden states to the next layer slice.

        Senders and receivers run the same operations. place: index, among the denoise ranks, of the first
        rank that sends. index: serial number of the message.
        """
        message = self._message("hidden states", place, self._hops[index])
        yield from repeat(Post(("hop", self._pipe, place, index), message), self._grid.sharers)

    def _predictions(self, index: int) -> Iterator[Post]:
        """Yield the simulated operations by which the first rank begins to receive a prediction's parts.

        The parts come from the ranks of the last layer slice. index: serial number of the prediction.
        """
        for sender in self._senders:
            yield from self._prediction(sender, index, as_leader=True)

    def _prediction(self, sender: int, index: int, *, as_leader: bool) -> Iterator[Post]:
        """Yield the steps that begin to send one part of a prediction to the first rank, or to receive it.

        The first rank's own part does not travel. sender: index, among the denoise ranks, of the first rank
        that sends. as_leader: true to yield the steps of the first rank, which receives; false for those of
        the senders.
        """
        message = self._message("prediction", sender, self._kinds[index])
        if len(message.ranks) > 1:
            times = 1 if as_leader else len(message.ranks) - 1
            yield from repeat(Post(("prediction", self._pipe, sender, index), message), times)

    def _message(self, name: str, place: int, kind: Kind) -> Message:
        """Return the message of a given kind to or from a group of ranks; cached.

        name: kind of the message, such as "latents" or "prediction". place: index, among the denoise ranks,
        of the group's first rank. kind: kind of the block's step.
        """
        if (name, place, kind) not in self._messages:
            self._messages[name, place, kind] = self._new_message(name, place, kind)
        return self._messages[name, place, kind]

    def _new_message(self, name: str, place: int, kind: Kind) -> Message:
        video, grid = self._video, self._grid
        size, itemsize = grid.sharers, ITEMSIZE[video.dtype]
        group = tuple(self._ranks[place : place + size])
        if name == "exchanges":
            # These exchanges have been simulated already, so they occupy a resource that is theirs alone.
            slice_ = grid.slice_of(place)
            busy = {f"{name} of {group}": video.step_seconds(slice_, kind).exposed}
            return Message(name, group, busy, 0.0, video.steps.sent(kind, video.slices[slice_]))
        shares = [video.steps.shares(kind).tokens_of(number) for number in range(size)]
        if name == "hidden states":
            width = video.spec.transformers[0].width * itemsize
            text = video.steps.text_rows
            ranks = group + tuple(self._ranks[place + grid.slice_ranks :][:size])
            sent = [[0.0] * 2 * size for _ in ranks]
            for number, share in enumerate(shares):
                sent[number][size + number] = float(width * (share.stop - share.start + text))
            return video.message(name, ranks, sent)
        leader, value = self._ranks[0], video.values_of_token * itemsize
        others = [number for number, rank in enumerate(group) if rank != leader]
        ranks = (leader, *(group[number] for number in others))
        sent = [[0.0] * len(ranks) for _ in ranks]
        frames, left, right, _ = kind
        # Latents include the computed context; predictions are of the block's own frames only.
        own = range(left * video.tokens, (left + frames) * video.tokens)
        for index, number in enumerate(others, 1):
            if name == "latents":
                sent[0][index] = float(value * (left + frames + right) * video.tokens)
            else:
                mine = min(own.stop, shares[number].stop) - max(own.start, shares[number].start)
                sent[index][0] = float(value * max(0, mine))
        return video.message(name, ranks, sent)
