"""Checks of a placement against the request that is to run on it. Torch-free."""

from __future__ import annotations

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec


def check_branches(placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
    """Refuse options that need two guidance branches if some steps have only one. Raises InputError."""
    branches = request.branches(spec)
    options = (
        # A group of ranks would be idle in the steps of an expert without guidance.
        ("cfg_degree 2", placement.cfg_degree == 2, min(branches)),
        ("interleave", placement.interleave, max(branches)),
    )
    for option, wanted, least in options:
        if wanted and least == 1:
            instead = "cfg_degree 1" if placement.cfg_degree == 2 else "no interleave"
            scales = request.guidance_scales(spec)
            which = "guidance_scale_2" if scales[0] > 1 else "guidance_scale"
            why = f"{which} {min(scales):g} needs only one"
            if spec.embedded_guidance:
                why = f"model {spec.name!r} has one, which reads the guidance scale"
            else:
                instead += f", or a {which} above 1"
            raise InputError(f"{option} needs two guidance branches, but {why}: use {instead}")


def check_patterns(placement: Placement, spec: ModelSpec) -> None:
    """Refuse an attention form that cannot compute the model's sparse layers. Raises InputError."""
    for transformer in spec.transformers:
        placement.check_attention(transformer.sparse_patterns)


def check_tiles(placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
    """Refuse a picture that has fewer tiles than there are ranks to decode them. Raises InputError."""
    if placement.decode_degree == 1 or request.vae_tile is None:
        return
    size, multiple = (request.height, request.width), spec.vae.tile_multiple

    def number(tile: int) -> int:
        return spec.vae.grid(*size, tile).num_tiles

    if number(request.vae_tile) >= placement.decode_degree:
        return
    smaller = range(min(request.vae_tile, max(size)) // multiple * multiple, 0, -multiple)
    enough = next((tile for tile in smaller if number(tile) >= placement.decode_degree), None)
    tiles = number(request.vae_tile)
    raise InputError(
        f"decode_degree {placement.decode_degree} is more than the {tiles} tile{'s' * (tiles != 1)} of "
        f"{request.vae_tile} pixels in a picture of {request.width}x{request.height}: use "
        + (f"a vae_tile of {enough}, or " if enough else "")
        + "a decode_degree of 1"
    )
