"""Memory of ranks, estimated from sizes alone: what takes most of it, and which tiles or frames would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from paradit.config.methods.method import method_of
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec

PARTS = {
    "weights": "the weights",
    "text_cache": "the text's keys and values",
    "activations": "denoising",
    "latents": "the latents",
    "keys": "the neighbours' keys and values",
    "decode": "the decode",
    "conditions": "encoding the pictures",
}
"""Mapping from each part of a rank's memory to a text for people that says what the memory is used for."""


def on_one_device(by_rank: list[dict[str, int]], sharing: int) -> dict[str, int]:
    """Return the bytes of "weights" and "peak" on the fullest device, if several ranks share each device.

    by_rank: bytes of each rank's memory, by part. sharing: number of ranks on each device.
    """
    found = {part: [parts[part] for parts in by_rank] for part in ("weights", "peak")}
    # The worst case: the ranks that need most are on the same device.
    return {part: sum(sorted(sizes, reverse=True)[:sharing]) for part, sizes in found.items()}


def largest_part(by_rank: list[dict[str, int]]) -> str:
    """Return the part of memory, a key of `PARTS`, that is largest on the fullest rank at its peak."""
    fullest = max(by_rank, key=lambda parts: parts["peak"])
    # Only one stage at a time needs its working memory; the other parts stay for the whole run.
    stages = ("text_cache", "activations"), ("decode",), ("conditions",)
    at_peak = max(stages, key=lambda stage: sum(fullest.get(part, 0) for part in stage))
    return max(("weights", "latents", "keys", *at_peak), key=lambda part: fullest.get(part, 0))


def fitting_tile(
    request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]
) -> int | None:
    """Return the side, in pixels, of the largest decode tiles with which a request fits; None if none fit.

    Only tiles smaller than the request's own are tried.
    """
    tile = request.vae_tile
    while (tile := spec.vae.smaller_tile(request.height, request.width, tile)) is not None:
        if fits(replace(request, vae_tile=tile)):
            return tile
    return None


def way_out(request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]) -> str:
    """Return the end of a message about too little memory: which decode tiles, or how many frames, would fit.

    It is empty if the request does not fit with smaller tiles or fewer frames either.
    """
    if tile := fitting_tile(request, spec, fits):
        return f"; fits with decode tiles of {tile}"
    if frames := method_of(request).fitting_frames(request, spec, fits):
        return f"; fits with {frames} frames"
    return ""
