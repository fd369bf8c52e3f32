"""Ring and USP attention: exact for any lengths, with only two blocks of keys and values on a rank."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_in_memory import Unrotated, random_rows, run_together, world
from paradit.attention.base import Site
from paradit.attention.local_attention import sdpa
from paradit.attention.online_softmax import Merge, sdpa_with_lse
from paradit.attention.ring import ring
from paradit.attention.usp import usp
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares


def seam(attend: Any, projection: Iterator[Tensor], layout: Unrotated) -> Any:
    """Begin an attention; the layout only looks like that of a real run."""
    return attend(Site(0), projection, layout)


LENGTHS = {
    "one rank": (9,),
    "two": (8, 8),
    "uneven": (5, 1, 12),
    "a rank without tokens": (7, 0, 4, 3),
    "no tokens on the first": (0, 6),
}


def projections(q: Tensor, k: Tensor, v: Tensor, sizes: list[int]) -> list[Iterator[Tensor]]:
    """Return each rank's v, k and q: its own tokens and the replicated rows, the last of `sizes`."""
    parts = [x.split(sizes, dim=1) for x in (v, k, q)]
    return [iter([torch.cat([part[i], part[-1]], dim=1) for part in parts]) for i in range(len(sizes) - 1)]


def check(results: list[Tensor], sizes: list[int], q: Tensor, k: Tensor, v: Tensor) -> None:
    tokens = [result[:, :size] for result, size in zip(results, sizes[:-1], strict=True)]
    expected = sdpa(q, k, v)
    num_tokens = sum(sizes[:-1])
    torch.testing.assert_close(torch.cat(tokens, dim=1), expected[:, :num_tokens], rtol=0, atol=1e-6)
    for result, size in zip(results, sizes[:-1], strict=True):
        torch.testing.assert_close(result[:, size:], expected[:, num_tokens:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", [0, 4])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_ring_equals_attention_in_one_place(lengths: tuple[int, ...], text: int) -> None:
    q, k, v = random_rows(sum(lengths) + text, num_heads=3)
    sizes = [*lengths, text]
    works = [
        seam(ring(lengths, transport), projection, Unrotated(length + text, text))
        for transport, projection, length in zip(
            world(len(lengths)), projections(q, k, v, sizes), lengths, strict=True
        )
    ]
    check(run_together(works), sizes, q, k, v)


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize(
    ("heads", "lengths", "num_groups"),
    [(4, (4, 4, 4, 4), 2), (3, (4, 7, 1, 9), 2), (5, (6, 2, 3, 8, 0, 1), 3), (2, (3, 5, 1, 4, 6, 2), 2)],
)
def test_usp_equals_attention_in_one_place(
    heads: int, lengths: tuple[int, ...], num_groups: int, text: int
) -> None:
    q, k, v = random_rows(sum(lengths) + text, heads)
    sizes = [*lengths, text]
    degree = len(lengths) // num_groups
    groups = [lengths[group * degree : (group + 1) * degree] for group in range(num_groups)]
    rings = [world(num_groups) for _ in range(degree)]
    works = []
    for index, projection in enumerate(projections(q, k, v, sizes)):
        group, rank = divmod(index, degree)
        if rank == 0:
            transports = world(degree)
        rows = sum(groups[group]) + text
        work = Shares.equal(rows, heads, degree).work
        shares = Shares(num_heads=heads, tokens=groups[group], work=work, num_replicated=text)
        exchange = UlyssesExchange(shares, transports[rank], whole_heads=True)
        attend = usp(exchange, [sum(tokens) for tokens in groups], rings[rank][group])
        works.append(seam(attend, projection, Unrotated(lengths[index] + text, text)))
    check(run_together(works), sizes, q, k, v)


def test_parts_merge_in_any_order() -> None:
    q, k, v = random_rows(12, num_heads=2)
    parts = [sdpa_with_lse(q, k[:, keys], v[:, keys]) for keys in (slice(0, 5), slice(5, 6), slice(6, 12))]
    for order in ([0, 1, 2], [2, 0, 1]):
        merge = Merge()
        for index in order:
            merge.add(*parts[index])
        torch.testing.assert_close(merge.result(q), sdpa(q, k, v), rtol=0, atol=1e-6)


def test_no_keys_give_zeros() -> None:
    assert torch.equal(Merge().result(torch.ones(1, 2, 3, 4)), torch.zeros(1, 2, 3, 4))
