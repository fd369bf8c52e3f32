"""Order in which each rank runs the stages of requests (DeDiVAE, arXiv 2511.12056).

Every rank has a program of its own: its stages of one request after those of another. Ranks wait only for
each other's data, so stages on different ranks overlap without further coordination.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count
from typing import TypeVar

STAGES = ("encode", "denoise", "decode")
AHEAD = 2
"""Number of requests that may wait between two stages. Once there are this many, the ranks of the earlier
stage wait for those of the later stage."""


R = TypeVar("R")
Take = Callable[[bool], R | None]
"""Type of a function that returns the next request, or None if there is none now.

The function's argument says whether to wait for a request. After waiting, None means that no more requests
will come.
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
    is_denoised: Callable[[R], bool] = lambda _: False,
) -> Iterator[tuple[tuple[str, ...], R]]:
    """Yield what a rank that runs `stages` does, in order, as (stages of one request, request).

    decoder: index of the rank's decoder among `num_decoders`; a decoder is one rank, or several that decode
    each video together. take: function that returns the next request. is_denoised: function that returns
    whether only the decode of a request is left.

    On ranks that denoise, a request goes through all their stages before the next one begins. A rank that
    encodes and decodes for others encodes `AHEAD` requests ahead, so that the others need not wait for its
    decode.
    """
    ahead = AHEAD if "denoise" not in stages else 0
    open_requests: deque[tuple[int, R]] = deque()
    for number in count():
        # Wait for a request only if there is nothing left to decode.
        while (request := take(not open_requests)) is None:
            if not open_requests:
                return
            yield from _decode(open_requests.popleft(), stages, decoder, num_decoders)
        before = () if is_denoised(request) else tuple(stage for stage in STAGES[:2] if stage in stages)
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
    denoised: Collection[R] = (),
) -> Iterator[tuple[str, R]]:
    """Yield a rank's program as (stage, request) pairs, for requests that are all known beforehand."""
    found = program(stages, decoder, num_decoders, listed(requests), denoised.__contains__)
    return ((stage, request) for several, request in found for stage in several)


def decoder_of(request: int, num_decoders: int) -> int:
    """Return the index of the decoder (rank or group of ranks) that decodes a request; they take turns."""
    return request % num_decoders
