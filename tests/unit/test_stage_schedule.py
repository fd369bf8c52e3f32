"""Stages on ranks of their own: the order of their work, and how placements are written and refused."""

from collections import deque
from dataclasses import replace

import pytest

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.placement_text import read_fields, read_groups, read_placement
from paradit.scheduling.stages import AHEAD, PLACED, STAGES, decoder_of, steps
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
@pytest.mark.parametrize("pictures", ["none", "some", "all"])
def test_every_request_goes_its_way_and_nobody_waits_for_ever(
    ranks: int, groups: str, share: bool, num_requests: int, pictures: str
) -> None:
    where = placement(ranks, groups)
    if share:
        where = replace(where, decode_degree=len(where.decode_ranks))
    decoders = where.decode_groups
    of_rank = [next((n for n, group in enumerate(decoders) if r in group), -1) for r in range(ranks)]
    requests = range(num_requests)
    with_pictures = {"none": range(0), "some": requests[1::2], "all": requests}[pictures]
    programs = [
        deque(steps(where.work_of(r), of_rank[r], len(decoders), requests, with_pictures=with_pictures))
        for r in range(ranks)
    ]

    def needed(stage: str, request: int) -> list[tuple[str, tuple[int, ...]]]:
        """Return the stages that a stage of a request waits for, each with the ranks that do it."""
        if stage == "decode":
            return [("denoise", where.denoise_ranks)]
        if stage != "denoise":
            return []
        first = decoders[decoder_of(request, len(decoders))][:1]
        return [("encode", where.encode_ranks)] + [("conditions", first)] * (request in with_pictures)

    done: dict[str, dict[int, set[int]]] = {stage: {} for stage in STAGES}
    while any(programs):
        moved = False
        for rank, left in enumerate(programs):
            if not left:
                continue
            stage, request = left[0]
            if not all(set(of) <= done[one].get(request, set()) for one, of in needed(stage, request)):
                continue
            # Ranks that share a decode begin it together.
            group = decoders[of_rank[rank]] if stage == "decode" else (rank,)
            begun = done[stage].get(request, set())
            if any(r not in begun and list(programs[r])[:1] != [(stage, request)] for r in group):
                continue
            # A channel to each decoder, and from each, holds what `AHEAD` requests left there.
            after = "decode" if stage == "denoise" else "denoise"
            full = request - AHEAD * len(decoders)
            if stage != "decode" and full >= 0 and not done[after].get(full):
                continue
            done[stage].setdefault(request, set()).add(rank)
            left.popleft()
            moved = True
        assert moved, f"all wait: {[list(left)[:1] for left in programs]}"
    for request in requests:
        group = decoders[decoder_of(request, len(decoders))]
        assert done["denoise"][request] == set(where.denoise_ranks)
        assert done["decode"][request] == set(group)
        assert done["conditions"].get(request, set()) == ({group[0]} if request in with_pictures else set())


@pytest.mark.parametrize(
    ("stages", "decoder", "num_decoders", "expected"),
    [
        (STAGES, 0, 1, "e0 c0 n0 d0 e1 c1 n1 d1 e2 c2 n2 d2 e3 c3 n3 d3"),
        (("encode", "conditions", "decode"), 0, 1, "e0 c0 e1 c1 e2 c2 d0 e3 c3 d1 d2 d3"),
        (("conditions", "decode"), 0, 2, "c0 c2 d0 d2"),
        (("conditions", "denoise", "decode"), 1, 2, "n0 c1 n1 d1 n2 c3 n3 d3"),
        (("decode",), 0, 1, "d0 d1 d2 d3"),
    ],
)
def test_order_with_pictures(stages: tuple[str, ...], decoder: int, num_decoders: int, expected: str) -> None:
    letters = {"encode": "e", "conditions": "c", "denoise": "n", "decode": "d"}
    found = steps(stages, decoder, num_decoders, range(4), with_pictures=range(4))
    assert " ".join(f"{letters[stage]}{request}" for stage, request in found) == expected
    without = [step for step in expected.split() if step[0] != "c"]
    found = steps(stages, decoder, num_decoders, range(4))
    assert [f"{letters[stage]}{request}" for stage, request in found] == without


def test_pictures_are_encoded_by_the_rank_that_writes_the_video() -> None:
    where = placement(4, "denoise=0-1 decode=2,3 encode=3")
    assert [where.work_of(rank) for rank in (1, 2)] == [("denoise",), ("conditions", "decode")]
    assert where.work_of(3) == ("encode", "conditions", "decode")
    assert replace(where, decode_degree=2).work_of(3) == ("encode", "decode")
    assert Placement(ranks=2, replicas=2).work_of(1) == STAGES


def test_placements_are_written_in_two_ways() -> None:
    where = placement(8, "denoise=0-5 decode=6,7 encode=6", attention="ulysses")
    assert where.denoise_ranks == (0, 1, 2, 3, 4, 5)
    assert where.stages_of(6) == ("encode", "decode")
    assert read_placement(where.to_json()) == where
    assert Placement(ranks=3).stages_of(0) == PLACED
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
