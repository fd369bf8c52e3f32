"""Random generators that depend on nothing but a request's seed and on what they are for."""

from __future__ import annotations

import hashlib

import torch


def seeded(what: str, seed: int, number: int = 0) -> torch.Generator:
    """Return a CPU random generator for the numbers of one kind, such as the noise of step `number`.

    what: name of the kind. Generators with other arguments give other numbers.
    """
    # A hash, because sums would coincide: seed 1, block 2 would get the noise of seed 2, block 1. Python's
    # own hash() of a text differs from process to process.
    digest = hashlib.sha256(f"{what} {seed} {number}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
