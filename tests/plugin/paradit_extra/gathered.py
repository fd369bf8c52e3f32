"""Attention form in which every rank gathers all keys and values, and attends with its own queries."""

from paradit.attention.registry import Form


class Gathered(Form):
    name = "gathered"
    help = "Queries stay; all keys and values are gathered everywhere."
    exactness = "exact, up to rounding"
    compared = True
    joined_by = "paradit_extra.gathered:join"
    timed_by = "paradit_extra.gathered:layer"


GATHERED = Gathered()


def join(sharers, choice, kernel):  # noqa: ARG001
    return lambda shares: lambda *seam: attend(shares, sharers.transport, kernel, *seam)


def attend(shares, transport, kernel, site, projection, layout):  # noqa: ARG001, PLR0917
    import torch

    value, key = next(projection), layout.rope.apply(next(projection))
    both = torch.cat([key, value], dim=-1)
    mine = both[:, : shares.tokens[transport.rank]].contiguous()  # the replicated rows are on every rank
    batch, _, heads, depth = both.shape
    sizes = [batch * tokens * heads * depth for tokens in shares.tokens]
    arrival = transport.start([mine.flatten()] * transport.num_ranks, sizes)
    query = layout.rope.apply(next(projection))
    yield arrival
    parts = [part.view(batch, -1, heads, depth) for part in arrival.wait() if part.numel()]
    keys, values = torch.cat([*parts, both[:, mine.shape[1] :]], dim=1).chunk(2, dim=-1)
    return kernel(query, keys, values)


def layer(branch, choice):  # noqa: ARG001
    from paradit.planner.discrete_events import Compute, Post, Wait

    shares, ranks = branch.shares, range(branch.shares.num_ranks)
    size = [2 * branch.row_bytes * tokens * shares.num_heads for tokens in shares.tokens]
    sent = [[size[i] * (i != j) for j in ranks] for i in ranks]
    message = branch.message("keys and values", branch.ranks, sent)

    def layer(rank, key):
        cost = branch.costs[rank]
        yield Compute("project", 2 * cost.value)
        yield Post((key, "kv"), message)
        yield Compute("project", cost.value)
        yield Wait((key, "kv"))
        yield branch.attention(rank, (shares.tokens[rank] + shares.num_replicated) * shares.num_heads)
        yield Compute("finish", cost.finish)

    return layer
