"""Order in which each rank runs the stages of requests (DeDiVAE, arXiv 2511.12056).

Every rank has a program of its own: its stages of one request after those of another. Ranks wait only for
each other's data, so stages on different ranks overlap without further coordination.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count
from typing import TypeVar

STAGES = ("encode", "conditions", "denoise", "decode")
PLACED = ("encode", "denoise", "decode")
"""Stages whose ranks a placement names. `conditions` runs on decode ranks, which have the VAE."""
AHEAD = 2
"""Number of requests, for each decoder, that may wait between two stages. Once there are this many, the ranks
of the earlier stage wait for those of the later stage."""


R = TypeVar("R")
Take = Callable[[bool], R | None]
"""Type of a function that returns the next request.

Its argument says whether to wait for a request. If told not to wait, the function returns None if there is no
request now. If told to wait, it returns None only if no more requests will come.
"""


def listed(requests: Iterable[R]) -> Take[R]:
    """Return a function that returns the given requests one by one, then None."""
    left = iter(requests)
    return lambda _: next(left, None)


def program(
    stages: Collection[str],
    decoder: int,
    num_decoders: int,
    take: Take[R],
    *,
    is_denoised: Callable[[R], bool] = lambda _: False,
    has_pictures: Callable[[R], bool] = lambda _: False,
) -> Iterator[tuple[tuple[str, ...], R]]:
    """Yield a rank's work in order, as pairs (stages, request): the rank does these stages of this request.

    stages: names of all stages that this rank does. decoder: index of the rank's decoder, which is one rank,
    or several that decode each video together. num_decoders: number of decoders. take: function that returns
    the next request. is_denoised: function that returns whether only the decode of a request is left.
    has_pictures: function that returns whether a request has stage `conditions`, which is done by the decoder
    that will decode the request.

    A rank that denoises does all its stages of a request before the next request begins. A rank that encodes
    texts or pictures and decodes, but does not denoise, encodes `AHEAD` requests ahead for each decoder, so
    that the ranks that denoise need not wait for its decode:

        rank that denoises     | denoise 0 | denoise 1 | denoise 2 | ...
        rank that decodes      |c0|c1|c2|   |decode 0|c3| decode 1|c4| ...

    No rank waits for ever: before a rank encodes a request, it completes only stages of earlier requests, and
    to denoise a request, ranks wait only for its encoded texts and pictures.
    """
    ahead = AHEAD * num_decoders if "denoise" not in stages else 0
    open_requests: deque[tuple[int, R]] = deque()
    for number in count():
        # Wait for a request only if there is nothing left to decode.
        while (request := take(not open_requests)) is None:
            if not open_requests:
                return
            yield from _decode(open_requests.popleft(), stages, decoder, num_decoders)
        mine = decoder_of(number, num_decoders) == decoder
        left_out = {"decode"} if mine and has_pictures(request) else {"decode", "conditions"}
        before = tuple(stage for stage in STAGES if stage in stages and stage not in left_out)
        before = () if is_denoised(request) else before
        open_requests.append((number, request))
        if ahead and before:
            yield before, request
        if len(open_requests) > ahead:
            yield from _decode(
                open_requests.popleft(), stages, decoder, num_decoders, () if ahead else before
            )


def _decode(
    numbered: tuple[int, R],
    stages: Collection[str],
    decoder: int,
    num_decoders: int,
    before: tuple[str, ...] = (),
) -> Iterator[tuple[tuple[str, ...], R]]:
    number, request = numbered
    if "decode" in stages and decoder_of(number, num_decoders) == decoder:
        before = *before, "decode"
    if before:
        yield before, request


def steps(
    stages: Collection[str],
    decoder: int,
    num_decoders: int,
    requests: Iterable[R],
    *,
    denoised: Collection[R] = (),
    with_pictures: Collection[R] = (),
) -> Iterator[tuple[str, R]]:
    """Yield a rank's program as (stage, request) pairs, for requests that are all known beforehand.

    denoised: requests of which only the decode is left. with_pictures: requests with stage `conditions`.
    """
    found = program(
        stages,
        decoder,
        num_decoders,
        listed(requests),
        is_denoised=denoised.__contains__,
        has_pictures=with_pictures.__contains__,
    )
    return ((stage, request) for several, request in found for stage in several)


def decoder_of(request: int, num_decoders: int) -> int:
    """Return the index of the decoder (rank or group of ranks) that decodes a request; they take turns."""
    return request % num_decoders
