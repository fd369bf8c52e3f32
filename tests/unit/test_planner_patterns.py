"""The planner's operations and bytes of layers with patterns, compared with those that are counted."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_in_memory import DEPTH, attend_on_ranks
from messages import says
from paradit.attention.base import Attend, Projection
from paradit.attention.chunked import chunked
from paradit.attention.local_attention import sdpa
from paradit.attention.patterns import FULL, Pattern
from paradit.attention.pipesp_paper import pipesp_paper
from paradit.attention.registry import AUTO, FORMS, Choice
from paradit.attention.timing import layer
from paradit.config.errors import InputError
from paradit.config.methods.dualparal import QueueRequest
from paradit.config.methods.method import check_placement, method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.models.open_sora_plan.spec import OpenSoraPlanTransformerSpec
from paradit.models.published import published_spec
from paradit.models.transformer_spec import TransformerSpec
from paradit.planner.costs import block_seconds
from paradit.planner.discrete_events import Compute, Post, Wait
from paradit.planner.explain import ruled_out
from paradit.planner.hardware import Cluster
from paradit.planner.long_video import LongVideo
from paradit.planner.simulate import Candidate
from paradit.planner.slice_step import kind_of
from paradit.planner.step import Branch, simulate_layers
from paradit.planner.whole_video_step import all_layers, group_of, simulated_step
from paradit.scheduling.layer_pipeline import split_layers
from planner_cases import DEVICE, cluster, simulator

MODEL = "Open-Sora-Plan-v1.3.0"
# With these numbers, no rank fills up its rows to a full block of the CPU's attention (`some_rows`).
TOKENS, HEADS, LAYERS, BATCH = 1024, 6, 8, 2
PUBLISHED = published_spec(MODEL).transformers[0]
assert isinstance(PUBLISHED, OpenSoraPlanTransformerSpec)
SPEC = replace(PUBLISHED, num_attention_heads=HEADS, attention_head_dim=DEPTH, num_layers=LAYERS)
DENSE = replace(SPEC, sparsity=1)  # one group: all layers attend fully
IDEAL = replace(  # its attention takes the time of its operations, and nothing else
    DEVICE, memory_bandwidth=1e30, multiprocessors=1, message_multiprocessors=0, launch=0.0
)
FORMS_TRIED = [Choice.of("ulysses"), Choice.of("pipesp", chunks=2), Choice.of("pipesp-paper")]


@dataclass(frozen=True)
class Work:
    """Operations of the attention's matrix products, and bytes sent, by rank, in all layers."""

    operations: Counter[int]
    sent: Counter[int]


def counted(spec: TransformerSpec, choice: Choice, ranks: int) -> Work:
    """Run the attention of all layers on ranks, and count in the kernels and in the transport."""
    work, shares = Work(Counter(), Counter()), Shares.equal(TOKENS, HEADS, ranks)
    q, k, v = (torch.randn(BATCH, TOKENS, HEADS, DEPTH) for _ in range(3))
    for number in range(LAYERS):
        attended_by(choice, shares, spec.pattern(number), (q, k, v), work)
    return work


def attended_by(
    choice: Choice, shares: Shares, pattern: Pattern | None, qkv: tuple[Tensor, Tensor, Tensor], work: Work
) -> Tensor:
    """Run one attention on ranks, add to `work` what they compute and send, and return the result."""

    def form(shares: Shares, transport: Any) -> Attend:
        def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            work.operations[transport.rank] += 4 * query.numel() * key.shape[1]
            return sdpa(query, key, value)

        exchange = UlyssesExchange(shares, transport, choice.parts)
        if choice.name != "pipesp-paper":
            return chunked(exchange, kernel)
        return pipesp_paper(exchange, UlyssesExchange(shares, transport, shares.most_heads), kernel)

    attended, transports = attend_on_ranks(shares, *qkv, form, pattern=pattern)
    work.sent.update({transport.rank: transport.bytes_sent for transport in transports})
    return attended


def planned(spec: TransformerSpec, choice: Choice, ranks: int) -> Work:
    """Return the operations and bytes of the planner's simulated layers."""
    work, shares = Work(Counter(), Counter()), Shares.equal(TOKENS, HEADS, ranks)
    on = replace(cluster(ranks), device=IDEAL)
    for number in range(LAYERS):
        branch = branch_of(spec, on, shares, spec.pattern(number) or FULL)
        for rank in range(ranks):
            for step in layer(branch, choice)(rank, number):
                if isinstance(step, Post):
                    work.sent[rank] += round(sum(step.message.table[rank]))
                elif isinstance(step, Compute) and step.name == "attention":
                    rate = IDEAL.attention_rate("flash", "fp32", DEPTH)
                    work.operations[rank] += round(step.seconds * rate)
    return work


def branch_of(spec: TransformerSpec, on: Cluster, shares: Shares, pattern: Pattern) -> Branch:
    costs = [
        block_seconds(
            spec, on.device, held=held, tokens=TOKENS, text=0, batch=BATCH, dtype="fp32", pattern=pattern
        )
        for held in shares.tokens
    ]
    ranks = tuple(range(shares.num_ranks))
    costs = [replace(cost, wave=0.0) for cost in costs]
    return Branch(
        cluster=on, ranks=ranks, shares=shares, costs=costs, row_bytes=BATCH * DEPTH * 4, batch=BATCH
    )


@pytest.mark.parametrize("ranks", [2, 4])  # on 4 ranks, a rank computes one head and a half
@pytest.mark.parametrize("choice", FORMS_TRIED, ids=str)
def test_work_is_counted_as_planned(choice: Choice, ranks: int) -> None:
    sparse, dense = (counted(spec, choice, ranks) for spec in (SPEC, DENSE))
    assert sparse == planned(SPEC, choice, ranks)
    assert dense == planned(DENSE, choice, ranks)
    assert sparse.operations.total() == BATCH * SPEC.self_attention_flops(TOKENS, 0)
    # 4 of 8 layers need a quarter of the operations; these forms send as much as without patterns.
    assert sparse.operations.total() == dense.operations.total() * (4 + 4 / 4) / 8
    assert sparse.sent == dense.sent


def test_uneven_groups_are_counted_exactly() -> None:
    for pattern in (Pattern(4), Pattern(4, run=4)):
        sizes = [len(pattern.places(group, range(30))) for group in range(4)]
        assert len(set(sizes)) > 1
        assert pattern.pairs(30) == sum(size**2 for size in sizes)
    assert SPEC.self_attention_flops(30, 0) == 4 * SPEC.width * (
        4 * 30**2 + 2 * Pattern(4).pairs(30) + 2 * Pattern(4, run=4).pairs(30)
    )


@pytest.mark.parametrize("interleave", [False, True])
def test_a_step_has_the_layers_of_each_pattern(interleave: bool) -> None:
    one, choice = simulator(cluster(4), MODEL), Choice.of("ulysses", interleave=interleave)
    spec, group = one.spec.transformers[0], group_of(Placement(ranks=4))
    assert spec.patterns == {FULL: 4, Pattern(4): 14, Pattern(4, run=4): 14}
    branches, streams = all_layers(one, group, choice)
    in_order = simulate_layers(branches, spec.num_layers, streams, choice.lag)
    folded = simulated_step(one, group, choice)
    assert folded.computing == pytest.approx(in_order.computing)
    assert folded.seconds == pytest.approx(in_order.seconds, rel=0.02)


@pytest.mark.parametrize("sharers", [1, 2])
def test_a_layer_slice_takes_the_sum_of_its_own_layers(sharers: int) -> None:
    on, spec = cluster(4 * sharers), published_spec(MODEL)
    asked = Request.of(prompt="any", num_frames=201, num_inference_steps=20, method="dualparal")
    request, placement = resolve(asked, spec), Placement.of(ranks=on.ranks, pipeline_degree=4)
    assert isinstance(request, QueueRequest)
    one = LongVideo(cluster=on, spec=spec, request=request, placement=placement, dtype="bf16", decode=0.0)
    split = method_of(request).layers(placement, request, spec)
    # The two layers at each end are full, so the slices there have fewer layers.
    assert [len(layers) for layers in split] == [7, 9, 9, 7]
    kind = next(kind for kind in map(kind_of, one.queue.steps()) if kind[1])
    shares, times = one.steps.shares(kind), {}
    for number in range(32):
        costs = [
            block_seconds(spec.transformers[0], on.device, held=held, tokens=kind[3] * one.tokens, text=512,
                          batch=1, dtype="bf16", pattern=spec.transformers[0].pattern(number) or FULL)
            for held in shares.tokens
        ]  # fmt: skip
        times[number] = [
            3 * cost.value + cost.attention(work) + cost.finish
            for cost, work in zip(costs, shares.work, strict=True)
        ]
    for number, layers in enumerate(split):
        expected = [sum(times[index][rank] for index in layers) for rank in range(sharers)]
        found = one.step_seconds(number, kind)
        assert found.computing == pytest.approx(expected)
        assert (found.exposed > 0) == (sharers > 1)
    equal = split_layers([1.0] * 32, 4)
    slowest = [max(sum(times[n][0] for n in part) for part in parts) for parts in (split, equal)]
    assert slowest[0] < slowest[1]


def test_forms_without_patterns_are_refused_before_anything_is_loaded() -> None:
    spec = published_spec(MODEL)
    request = resolve(Request(prompt="any"), spec)
    for form in FORMS.all():
        placement = Placement(ranks=4, attention=form.name)
        if form.patterns:
            check_placement(placement, request, spec)
            continue
        with pytest.raises(InputError) as caught:
            check_placement(placement, request, spec)
        assert says(str(caught.value), f"sparse layers need attention auto, ulysses .. got {form.name!r}")
    first = spec.transformers[0]
    choices = Placement(ranks=4, attention=AUTO).choices(24, patterns=first.sparse_patterns)
    assert choices and all(choice.form.patterns for choice in choices)


def order_of_run(shares: Shares) -> list[list[str]]:
    """Run attention as in PipeSP's paper; return what each rank does, in order, until its results leave."""
    done: list[list[str]] = [[] for _ in range(shares.num_ranks)]

    def form(shares: Shares, transport: Any) -> Attend:
        mine, start = done[transport.rank], transport.start

        def logged_start(*message: Any) -> Any:
            mine.append("send")
            return start(*message)

        def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mine.append("attention")
            return sdpa(query, key, value)

        def logged(projection: Projection) -> Projection:
            for projected in projection:
                mine.append("project")
                yield projected

        transport.start = logged_start
        by_head = UlyssesExchange(shares, transport, shares.most_heads)
        attend = pipesp_paper(UlyssesExchange(shares, transport), by_head, kernel)
        return lambda site, projection, layout: attend(site, logged(projection), layout)

    q, k, v = (torch.randn(BATCH, TOKENS, shares.num_heads, DEPTH) for _ in range(3))
    attend_on_ranks(shares, q, k, v, form)
    return done


def test_inputs_travel_while_others_are_projected() -> None:
    """Each of the three inputs leaves before the next is projected, as in PipeDiT with Open-Sora-Plan."""
    shares = Shares.equal(TOKENS, HEADS, 2)
    expected = ["project", "send"] * 3 + ["attention", "send"] * 3
    assert order_of_run(shares) == [expected] * 2
    branch, names = branch_of(SPEC, cluster(2), shares, FULL), {Compute: "", Post: "send", Wait: "wait"}
    for rank in range(2):
        steps = list(layer(branch, Choice.of("pipesp-paper"))(rank, 0))
        words = [step.name if isinstance(step, Compute) else names[type(step)] for step in steps]
        assert words[6:9] == ["wait"] * 3
        assert [word for word in words[:-1] if word != "wait"] == expected


@pytest.mark.parametrize("pattern", [None, Pattern(4)], ids=str)
def test_shares_of_heads_beat_padded_heads(pattern: Pattern | None) -> None:
    """On 7 ranks PipeDiT pads 24 heads to 28, so that each rank has 4. Ours have 24 / 7 each."""
    tokens, plain = 896, Choice.of("ulysses")  # no rank fills up its rows
    heads, q_k_v = 24, [torch.randn(1, tokens, 24, DEPTH) for _ in range(3)]
    found = {}
    for number in (heads, 28):
        work, padded = Work(Counter(), Counter()), [pad(x, (0, 0, 0, number - heads)) for x in q_k_v]
        q, k, v = padded
        attended = attended_by(plain, Shares.equal(tokens, number, 7), pattern, (q, k, v), work)
        found[number] = work, attended[:, :, :heads]
    (ours, attended), (theirs, expected) = found.values()
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-6)
    for rank in range(7):
        assert ours.operations[rank] * 28 == theirs.operations[rank] * 24
        assert ours.sent[rank] < theirs.sent[rank]


@pytest.mark.parametrize("ranks", range(2, 9))
def test_a_plan_says_why_ranks_divide_heads(ranks: int) -> None:
    """Tokens are dealt by group only where ranks divide the 4 groups, or are a multiple of them."""
    one, placement = simulator(cluster(ranks), MODEL), Placement(ranks=ranks)
    choices = placement.choices(24, patterns=one.spec.transformers[0].sparse_patterns)
    dealt = [choice for choice in choices if choice.name == "skiparse"]
    plan = one.simulate(Candidate(placement=placement), 1, Choice.of("ulysses"))
    if ranks in {2, 4, 8}:
        assert dealt and not ruled_out(plan, one)
        return
    assert not dealt
    (said,) = ruled_out(plan, one)
    assert says(said, f"ulysses, which divides heads; attention skiparse deals 4 groups .. and {ranks} ranks")
