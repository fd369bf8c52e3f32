"""The ways in which the ranks of a branch share its attention, from their names."""

from __future__ import annotations

from paradit.attention.base import Attend, Kernel
from paradit.attention.local import sdpa
from paradit.attention.ring import ring, usp
from paradit.attention.ulysses import pipesp_paper, ulysses
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.mesh import Mesh
from paradit.distributed.shares import Shares
from paradit.placement import Form


def attend_on(mesh: Mesh, form: Form, shares: Shares, kernel: Kernel = sdpa) -> Attend:
    """Attention over the ranks of a branch, which hold the tokens of `shares`, in the order of the branch.

    Ring and USP have a kernel of their own, which gives the log-sum-exp.
    """
    if form.attention == "ring":
        return ring(shares.tokens, mesh.ring)
    if form.attention == "usp":
        return _usp(mesh, shares)
    if form.attention == "pipesp-paper":
        heads_of_a_rank = -(-max(shares.work) // shares.num_rows)
        by_head = UlyssesExchange(shares, mesh.ulysses, heads_of_a_rank)
        return pipesp_paper(UlyssesExchange(shares, mesh.ulysses), by_head, kernel)
    return ulysses(UlyssesExchange(shares, mesh.ulysses, form.chunks), kernel)


def _usp(mesh: Mesh, shares: Shares) -> Attend:
    tokens = [tuple(shares.tokens[rank] for rank in group) for group in mesh.ulysses_groups]
    (mine,) = [group for group, ranks in enumerate(mesh.ulysses_groups) if mesh.rank in ranks]
    rows = sum(tokens[mine]) + shares.num_replicated
    within = Shares(
        num_heads=shares.num_heads,
        tokens=tokens[mine],
        work=Shares.equal(rows, shares.num_heads, mesh.ulysses_degree).work,
        num_replicated=shares.num_replicated,
    )
    exchange = UlyssesExchange(within, mesh.ulysses, whole_heads=True)
    return usp(exchange, [sum(group) for group in tokens], mesh.ring)
