"""Attention by patterns, compared with masked attention, in one process and on ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from allocated import allocated_peak
from attention_in_memory import FORMS, SHARES, Form, Unrotated, attend_on_ranks, random_qkv
from paradit.attention.base import Attend, Site
from paradit.attention.grouped import attended
from paradit.attention.join import join
from paradit.attention.local_attention import sdpa
from paradit.attention.patterns import FULL, Pattern
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope
from paradit.attention.window import Neighbour, windowed, windowed_over
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from threads import one_thread

each_pattern = pytest.mark.parametrize(
    "pattern", [Pattern(4), Pattern(4, run=4), Pattern(3, run=2), Pattern(1, run=5)], ids=str
)


def mask_of(pattern: Pattern, num_tokens: int) -> Tensor:
    """Return which key (column) each query (row) sees, [S, S] booleans."""
    numbers = [token // pattern.run % pattern.groups for token in range(num_tokens)]
    return torch.tensor([[mine == other for other in numbers] for mine in numbers])


def masked(pattern: Pattern, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask_of(pattern, q.shape[2]))
    return out.transpose(1, 2)


@each_pattern
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 37, 100])
def test_groups_are_those_of_the_mask(pattern: Pattern, num_tokens: int) -> None:
    mask, every = mask_of(pattern, num_tokens), range(num_tokens)
    found = torch.zeros_like(mask)
    for group in range(pattern.groups):
        places = pattern.places(group, every)
        tokens = pattern.tokens(group, places)
        found[torch.tensor(tokens, dtype=torch.int64)[:, None], tokens] = True
        for start, stop in [(0, num_tokens), (num_tokens // 3, num_tokens), (1, 1 + num_tokens // 2)]:
            some = pattern.tokens(group, pattern.places(group, range(start, stop)))
            assert some == [token for token in tokens if start <= token < stop]
    assert torch.equal(found, mask)
    assert pattern.pairs(num_tokens) == mask.sum()
    some_rows = range(num_tokens // 3, num_tokens - num_tokens // 5)
    assert pattern.pairs(num_tokens, some_rows) == mask[some_rows.start : some_rows.stop].sum()


def test_full_attention_is_a_pattern_of_one_group() -> None:
    assert FULL.pairs(10) == Pattern(1, run=3).pairs(10) == 100
    with pytest.raises(ValueError, match="at least 1"):
        Pattern(0)


@each_pattern
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 37, 324])
def test_one_process_equals_masked_attention(pattern: Pattern, num_tokens: int) -> None:
    q, k, v = random_qkv(Shares.equal(num_tokens, 3, 1))
    expected = masked(pattern, q, k, v)
    torch.testing.assert_close(attended(sdpa, pattern, q, k, v), expected, rtol=0, atol=1e-6)
    some = slice(num_tokens // 3, num_tokens - num_tokens // 5)
    found = attended(sdpa, pattern, q[:, some], k, v, start=some.start, num_rows=num_tokens)
    torch.testing.assert_close(found, expected[:, some], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("run", "most"), [(1, 1.5), (4, 2.25)])
@one_thread()
def test_no_mask_and_no_whole_sequence_is_copied(run: int, most: float) -> None:
    q, k, v = random_qkv(Shares.equal(8192, 4, 1))
    peak = allocated_peak(lambda: attended(sdpa, Pattern(4, run), q, k, v))
    # The result, a quarter of it and, if groups are runs, as much of queries, keys and values; and the blocks
    # in which the kernel works (at most 0.25 here). A mask would be 16 times as large as the result.
    assert peak <= most * q.nbytes


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("form", [FORMS["2 chunks"], FORMS["paper"]])
def test_ranks_equal_masked_attention(shares: Shares, form: Form) -> None:
    pattern, (q, k, v) = Pattern(4, run=4), random_qkv(shares)
    found, _ = attend_on_ranks(shares, q, k, v, form, pattern=pattern)
    torch.testing.assert_close(found, masked(pattern, q, k, v), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("num_ranks", [2, 3, 5, 7])
@one_thread()
def test_the_bits_are_those_of_one_process(num_ranks: int, form: Form) -> None:
    for pattern in (Pattern(4), Pattern(4, run=4)):
        shares = Shares.equal(1187, 6, num_ranks)
        q, k, v = random_qkv(shares)
        found, _ = attend_on_ranks(shares, q, k, v, form, pattern=pattern)
        assert torch.equal(found, attended(sdpa, pattern, q, k, v)), pattern


BEFORE, COMPUTED, AFTER = 13, 30, 9
"""Tokens of a frame block's window: those before the block and after it are read from a cache."""


def neighbours(key: Tensor, value: Tensor, site: Site) -> list[Neighbour]:
    """Return the cached tokens of a window, whose keys and values are given."""
    stop = BEFORE + COMPUTED
    cached = [(slice(0, BEFORE), True), (slice(stop, stop + AFTER), False)]
    return [
        Neighbour({site.key: (key[:, part], value[:, part])}, rope=rope_of(key[:, part]), is_before=before)
        for part, before in cached
    ]


def rope_of(x: Tensor) -> Rope:
    return Unrotated(x.shape[1]).rope


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@one_thread()
def test_a_window_counts_tokens_from_its_first_frame(num_ranks: int) -> None:
    site, shares = Site(0, pattern=Pattern(4, run=4)), Shares.equal(COMPUTED, 3, num_ranks)
    q, k, v = random_qkv(Shares.equal(BEFORE + COMPUTED + AFTER, 3, 1))
    own_q, own_k, own_v = (x[:, BEFORE : BEFORE + COMPUTED] for x in (q, k, v))

    def form(shares: Shares, transport: Any) -> Attend:
        if shares.num_ranks == 1:
            return windowed(sdpa, neighbours(k, v, site))
        exchange = UlyssesExchange(shares, transport, whole_heads=True)
        mine = exchange.chunks[0].new_heads  # a rank caches only the heads that it computes
        keys, values = (x[:, :, mine.first_head : mine.last_head] for x in (k, v))
        return windowed_over(exchange, rope_of(own_q), sdpa, neighbours(keys, values, site))

    found, _ = attend_on_ranks(shares, own_q, own_k, own_v, form, pattern=site.pattern)
    expected = masked(Pattern(4, run=4), q, k, v)[:, BEFORE : BEFORE + COMPUTED]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    alone, _ = attend_on_ranks(Shares.equal(COMPUTED, 3, 1), own_q, own_k, own_v, form, pattern=site.pattern)
    assert torch.equal(found, alone)


def test_forms_that_take_no_patterns_refuse_them() -> None:
    shares = Shares.equal(8, 2, 1)
    with pytest.raises(NotImplementedError, match="attention ring takes no patterns, got Site"):
        attend_on_ranks(shares, *random_qkv(shares), ring, pattern=Pattern(2))


def ring(shares: Shares, transport: Any) -> Any:
    return join(Sharers(transport), Choice.of("ring"), sdpa)(shares)
