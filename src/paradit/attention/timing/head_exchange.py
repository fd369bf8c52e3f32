"""Simulation, for the planner, of attention whose heads travel between ranks: Ulysses and forms of PipeSP."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from paradit.attention.registry import Choice
from paradit.distributed.shares import ChunkBoxes, chunk_boxes
from paradit.planner.discrete_events import Compute, Message, Post, Step, Wait
from paradit.planner.step import Branch, Exchange, Layer


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return the planner's simulation of a transformer layer with Ulysses or PipeSP attention."""
    return chunked_layer(branch, choice.parts, interleaved=choice.interleave)


def paper_layer(branch: Branch, choice: Choice) -> Layer:  # noqa: ARG001
    """Return the planner's simulation of a layer with attention as in the PipeSP paper (`pipesp_paper`)."""
    return all_in_first(branch, branch.shares.most_heads)


def chunked_layer(branch: Branch, num_chunks: int = 1, *, interleaved: bool = False) -> Layer:
    """Return the planner's simulation of a layer whose attention data travel in `num_chunks` chunks.

    interleaved: whether two guidance branches take turns, so that messages of one branch travel while the
    other branch is computed.
    """
    chunks = chunk_boxes(branch.shares, num_chunks)
    heads = [[[box] for box in chunk.new_heads] for chunk in chunks]
    value = Exchange(branch, branch.inward("values", heads[0]))
    # One message has a chunk's keys and queries and, except in the first chunk, its values.
    together = [
        Exchange(
            branch,
            branch.inward("keys and queries", *[heads[index]] * (1 if index == 0 else 2), chunk.work),
        )
        for index, chunk in enumerate(chunks)
    ]
    results = [Exchange(branch, branch.results(chunk.work)) for chunk in chunks]
    beside = _beside(value, together, results, interleaved=interleaved)

    def layer(rank: int, key: Hashable) -> Iterator[Step]:
        cost = branch.costs[rank]
        yield Compute("project", cost.value)
        yield from value.post(rank, (key, "v"))
        yield Compute("project", 2 * cost.value)
        for index, message in enumerate(together):
            yield from message.post(rank, (key, "in", index))
        yield from value.wait(rank, (key, "v"))
        for index, chunk in enumerate(chunks):
            yield from together[index].wait(rank, (key, "in", index))
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside[index])
            yield from results[index].post(rank, (key, "out", index))
        for index, result in enumerate(results):
            yield from result.wait(rank, (key, "out", index))
        yield Compute("finish", cost.finish)

    return layer


def _beside(
    value: Exchange, together: list[Exchange], results: list[Exchange], *, interleaved: bool
) -> list[float]:
    """Return, for each chunk, the seconds for which messages travel while that chunk is computed.

    value: simulated exchange of the first chunk's values. together: for each chunk, the exchange of its other
    data. results: for each chunk, the exchange of its results. interleaved: whether two guidance branches
    take turns.
    """
    if interleaved:  # all of the other stream's messages may travel, spread evenly over the chunks
        whole = sum(message.seconds for message in (value, *together, *results))
        return [whole / len(together)] * len(together)
    # The next chunk arrives, and the previous chunk's results leave.
    return [
        sum(
            message.seconds
            for message in (*together[index + 1 : index + 2], *results[max(0, index - 1) : index])
        )
        for index in range(len(together))
    ]


def all_in_first(branch: Branch, count: int, *, whole_heads: bool = False) -> Layer:
    """Return the planner's simulation of a layer that computes attention once all data have arrived.

    count: number of chunks in which the results leave. whole_heads: whether each rank receives an equal part
    of the heads, even those that its query rows do not need.
    """
    (whole,) = chunk_boxes(branch.shares, 1, whole_heads=whole_heads)
    coming = incoming(branch, whole)
    chunks = chunk_boxes(branch.shares, count)
    results = [branch.results(chunk.work) for chunk in chunks]

    def layer(rank: int, key: Hashable) -> Iterator[Step]:
        for index, message in enumerate(coming):
            yield Compute("project", branch.costs[rank].value)
            yield Post((key, "in", index), message)
        for index in range(3):  # values, keys and queries
            yield Wait((key, "in", index))
        for index, chunk in enumerate(chunks):
            beside = results[index - 1].seconds if index else 0.0
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside)
            yield Post((key, "out", index), results[index])
        for index in range(count):
            yield Wait((key, "out", index))
        yield Compute("finish", branch.costs[rank].finish)

    return layer


def incoming(branch: Branch, whole: ChunkBoxes) -> list[Message]:
    """Return three exchanges, by which each rank receives the values, keys and queries that it works on."""
    heads = [[box] for box in whole.new_heads]
    return [
        branch.inward("values", heads),
        branch.inward("keys", heads),
        branch.inward("queries", whole.work),
    ]
