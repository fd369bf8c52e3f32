"""Which rank does which stage of which request, and in which order (DeDiVAE, arXiv 2511.12056).

Every rank has a program: (stage, request) after (stage, request). Ranks wait for each other's data only, so
what lies on different ranks overlaps by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

STAGES = ("encode", "denoise", "decode")
AHEAD = 2
"""How many requests may be ready between two stages: a slow stage pushes back."""


def program(
    stages: Collection[str],
    decoder: int,
    num_decoders: int,
    num_requests: int,
    denoised: Collection[int] = (),
) -> Iterator[tuple[str, int]]:
    """What a rank that does `stages` does, in order. It is decoder `decoder`, counted from 0, of so many.

    denoised: requests of which nothing but the decode is left.
    A decoder is one rank, or several that decode each video together, all at the same time.

    On ranks that denoise, a request goes through all their stages before the next one begins. A rank that
    encodes and decodes for others encodes `AHEAD` requests ahead, so that they need not wait for its decode.
    """
    ahead = AHEAD if "denoise" not in stages else 0
    for turn in range(num_requests + ahead):
        if turn < num_requests and turn not in denoised:
            yield from ((stage, turn) for stage in STAGES[:2] if stage in stages)
        done = turn - ahead
        if "decode" in stages and done >= 0 and decoder_of(done, num_decoders) == decoder:
            yield "decode", done


def decoder_of(request: int, num_decoders: int) -> int:
    """Which of the decoders, counted from 0, decodes a request: each in turn."""
    return request % num_decoders
