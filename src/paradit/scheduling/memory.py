"""Memory of ranks as estimated from the spec alone: the largest part, and tiles or frames that would fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from paradit.config.methods.base import method_of
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec

PARTS = {
    "weights": "the weights",
    "text_cache": "the text's keys and values",
    "activations": "denoising",
    "latents": "the latents",
    "keys": "the neighbours' keys and values",
    "decode": "the decode",
}
"""Texts for people on what each part of a rank's memory is used for."""


def on_one_device(by_rank: list[dict[str, int]], sharing: int) -> dict[str, int]:
    """Return the fullest device's bytes of "weights" and "peak", if `sharing` ranks share each device."""
    found = {part: [parts[part] for parts in by_rank] for part in ("weights", "peak")}
    return {part: sum(sorted(sizes, reverse=True)[:sharing]) for part, sizes in found.items()}


def largest_part(by_rank: list[dict[str, int]]) -> str:
    """Return the part, a key of `PARTS`, that takes the most memory of the fullest rank at its peak."""
    fullest = max(by_rank, key=lambda parts: parts["peak"])
    stages = ("text_cache", "activations"), ("decode",)
    at_peak = max(stages, key=lambda stage: sum(fullest[part] for part in stage))
    return max(("weights", "latents", "keys", *at_peak), key=lambda part: fullest.get(part, 0))


def fitting_tile(
    request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]
) -> int | None:
    """Return the largest decode tiles, smaller than a request's own, with which it fits; None: none do.

    The value is the tiles' side in pixels.
    """
    tile = request.vae_tile
    while (tile := spec.vae.smaller_tile(request.height, request.width, tile)) is not None:
        if fits(replace(request, vae_tile=tile)):
            return tile
    return None


def way_out(request: ResolvedRequest, spec: ModelSpec, fits: Callable[[ResolvedRequest], bool]) -> str:
    """Return a suffix for a message on lack of memory: the tiles or frames with which the request would fit.

    It is empty if neither helps.
    """
    if tile := fitting_tile(request, spec, fits):
        return f"; fits with decode tiles of {tile}"
    if frames := method_of(request).fitting_frames(request, spec, fits):
        return f"; fits with {frames} frames"
    return ""
