"""Stages on ranks of their own: the order of their work, and how placements are written and refused."""

from collections import deque
from dataclasses import replace

import pytest

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.placement_text import read_fields, read_groups, read_placement
from paradit.scheduling.stages import AHEAD, STAGES, decoder_of, steps
from video_jobs import PLACEMENTS, placement

TOGETHER = [
    (2, "denoise=0-1 decode=0-1 encode=0"),
    (3, "denoise=0 decode=1,2 encode=1"),
    (3, "denoise=0 decode=0-2 encode=1"),
    (3, "denoise=0-1 decode=1,2 encode=2"),
    (4, "denoise=1-2 decode=0,3 encode=1"),
]
"""Placements in which all ranks that decode share each video: (ranks, groups)."""


@pytest.mark.parametrize(
    ("ranks", "groups", "share"), [(*p, False) for p in PLACEMENTS] + [(*p, True) for p in TOGETHER]
)
@pytest.mark.parametrize("num_requests", [0, 1, 2, 7])
def test_every_request_goes_its_way_and_nobody_waits_for_ever(
    ranks: int, groups: str, share: bool, num_requests: int
) -> None:
    where = placement(ranks, groups)
    if share:
        where = replace(where, decode_degree=len(where.decode_ranks))
    decoders = where.decode_groups
    of_rank = [next((n for n, group in enumerate(decoders) if r in group), -1) for r in range(ranks)]
    programs = [
        deque(steps(where.stages_of(r), of_rank[r], len(decoders), range(num_requests))) for r in range(ranks)
    ]
    done: dict[str, dict[int, set[int]]] = {stage: {} for stage in STAGES}
    while any(programs):
        moved = False
        for rank, left in enumerate(programs):
            if not left:
                continue
            stage, request = left[0]
            before = STAGES[STAGES.index(stage) - 1] if stage != "encode" else None
            sources = {"denoise": where.encode_ranks, "decode": where.denoise_ranks}.get(stage, ())
            if before and not set(sources) <= done[before].get(request, set()):
                continue
            # Ranks that share a decode begin it together.
            group = decoders[of_rank[rank]] if stage == "decode" else (rank,)
            begun = done[stage].get(request, set())
            if any(r not in begun and list(programs[r])[:1] != [(stage, request)] for r in group):
                continue
            # Outputs of `AHEAD` requests may wait for the next stage, while one more is being made.
            after = {"encode": "denoise", "denoise": "decode"}.get(stage)
            if after:
                assert request - len(done[after]) <= AHEAD + len(decoders)
            done[stage].setdefault(request, set()).add(rank)
            left.popleft()
            moved = True
        assert moved, f"all wait: {[list(left)[:1] for left in programs]}"
    for request in range(num_requests):
        assert done["denoise"][request] == set(where.denoise_ranks)
        assert done["decode"][request] == set(decoders[decoder_of(request, len(decoders))])


def test_placements_are_written_in_two_ways() -> None:
    where = placement(8, "denoise=0-5 decode=6,7 encode=6", attention="ulysses")
    assert where.denoise_ranks == (0, 1, 2, 3, 4, 5)
    assert where.stages_of(6) == ("encode", "decode")
    assert read_placement(where.to_json()) == where
    assert Placement(ranks=3).stages_of(0) == STAGES
    assert Placement(ranks=3).stages_of(2) == ("denoise",)
    assert Placement(ranks=3, denoise=(0, 1), decode=(2,)).encode_ranks == (2,)


@pytest.mark.parametrize(
    ("ranks", "groups", "message"),
    [
        (3, "denoise=0-1 decode=3", "decode .* 0 to 2, got 3"),
        (3, "denoise=0,0 decode=1", "denoise .* 0 to 2, got 0, 0"),
        (4, "denoise=0-1 decode=2", "rank 3 .*: give it one, or use fewer"),
        (4, "denoise=0-1 decode=2,3 encode=2,3", "encode must be one rank, got 2, 3: use encode=2"),
        (3, "dnoise=0-1", "placement must be written like"),
        (3, "decode=1-", "placement must be written like"),
        (3, " ", "placement is empty"),
    ],
)
def test_placements_that_cannot_be(ranks: int, groups: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Placement.of(ranks=ranks, **read_groups(groups))


@pytest.mark.parametrize("text", ["{", "[]", '{"rank": 2}', '{"decode": 1}', '{"decode": ["1"]}'])
def test_files_that_hold_no_placement(text: str) -> None:
    with pytest.raises(InputError):
        read_fields(text)
