"""Which rank does which stage of which request, and in which order (DeDiVAE, arXiv 2511.12056).

Every rank has a program: stages of a request after stages of a request. Ranks wait for each other's data
only, so what lies on different ranks overlaps by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count
from typing import TypeVar

STAGES = ("encode", "denoise", "decode")
AHEAD = 2
"""How many requests may be ready between two stages: a slow stage pushes back."""


R = TypeVar("R")
Take = Callable[[bool], R | None]
"""What hands out requests in order: the next one, or None if there is none now.

Asked to wait, it returns None only if no more come.
"""


def listed(requests: Iterable[R]) -> Take[R]:
    """Requests that are all there already."""
    left = iter(requests)
    return lambda _: next(left, None)


def program(
    stages: Collection[str],
    decoder: int,
    num_decoders: int,
    take: Take[R],
    is_denoised: Callable[[R], bool] = lambda _: False,
) -> Iterator[tuple[tuple[str, ...], R]]:
    """What a rank that does `stages` does, in order: stages of a request, one after the other.

    It is decoder `decoder`, counted from 0, of so many. is_denoised: whether nothing but the decode of a
    request is left. A decoder is one rank, or several that decode each video together, all at the same time.

    On ranks that denoise, a request goes through all their stages before the next one begins. A rank that
    encodes and decodes for others encodes `AHEAD` requests ahead, so that they need not wait for its decode.
    """
    ahead = AHEAD if "denoise" not in stages else 0
    open_requests: deque[tuple[int, R]] = deque()
    for number in count():
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
    """The program of a rank, for requests that are all there, as (stage, request)."""
    found = program(stages, decoder, num_decoders, listed(requests), denoised.__contains__)
    return ((stage, request) for several, request in found for stage in several)


def decoder_of(request: int, num_decoders: int) -> int:
    """Which of the decoders, counted from 0, decodes a request: each in turn."""
    return request % num_decoders
