"""How much memory each rank of a placement needs, from the spec alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from paradit.config.placement import Placement
from paradit.config.requests import frames_at_once, latent_shape
from paradit.distributed.shares import Shares
from paradit.models.spec import FP32_BYTES, stage_of
from paradit.scheduling.block_queue import queue_of
from paradit.scheduling.layer_pipeline import split_layers

if TYPE_CHECKING:
    from paradit.config.requests import Request
    from paradit.models.spec import ModelSpec

PARTS = {
    "weights": "the weights",
    "text_cache": "the text's keys and values",
    "activations": "denoising",
    "latents": "the latents",
    "keys": "the neighbours' keys and values",
    "decode": "the decode",
}
"""What they are for."""


def memory_by_rank(
    placement: Placement, request: Request, spec: ModelSpec, dtype_bytes: int
) -> list[dict[str, int]]:
    """Estimated bytes by part, as of `ModelSpec.memory_bytes`, for every rank; of a resolved request."""
    if request.method == "dualparal":
        return [
            _long(placement, request, spec, dtype_bytes, rank % placement.replica_ranks)
            for rank in range(placement.ranks)
        ]
    assert request.num_frames and request.height and request.width and request.guidance_scale
    size = (frames_at_once(request, spec), request.height, request.width)
    grid = placement.stage_grid(request, spec)
    shares = Shares.equal(spec.tokens(*size), spec.transformers[0].num_attention_heads, grid.sharers)
    branches = spec.num_branches(request.guidance_scale) // placement.cfg_degree
    in_turn = len(placement.denoise_ranks) == 1
    held = {rank: shares.tokens[grid.place(n)] for n, rank in enumerate(placement.denoise_ranks)}
    return [
        spec.rank_memory_bytes(
            *size,
            dtype_bytes,
            placement.stages_of(rank),
            held=held.get(rank % placement.replica_ranks),
            cached=branches,
            # One process computes a branch after the other; several have both in one batch, or side by side.
            at_once=1 if in_turn else branches,
            tile=request.vae_tile,
            decode_ranks=placement.decode_degree,
        )
        for rank in range(placement.ranks)
    ]


def _long(
    placement: Placement, request: Request, spec: ModelSpec, dtype_bytes: int, rank: int
) -> dict[str, int]:
    """The same parts for a rank of a long video in blocks, which has some of the layers.

    "keys" are those that the next block's step reads.
    """
    assert request.height and request.width and request.guidance_scale
    stages, ranks = placement.stages_of(rank), placement.denoise_ranks
    size = (frames_at_once(request, spec), request.height, request.width)
    grid = placement.stage_grid(request, spec)
    place = ranks.index(rank) if rank in ranks else 0
    branches = spec.num_branches(request.guidance_scale) // grid.cfg_degree
    shares = Shares.equal(spec.tokens(*size), spec.transformers[0].num_attention_heads, grid.sharers)
    parts = spec.rank_memory_bytes(
        *size,
        dtype_bytes,
        stages,
        held=shares.tokens[grid.place(place)],
        cached=branches,
        at_once=1,
        tile=request.vae_tile,
    )
    if "denoise" not in stages:
        return {**parts, "keys": 0}
    channels, frames, height, width = latent_shape(request, spec)
    queue = queue_of(request, frames)
    transformer = spec.transformers[0]
    held = len(split_layers([1.0] * transformer.num_layers, grid.num_stages)[grid.stage(place)])
    part = held / transformer.num_layers
    whole = sum(w.parameters for w in spec.weights if stage_of(w.component) == "denoise") * dtype_bytes
    parts["weights"] -= round(whole * (1 - part))
    parts["text_cache"] = round(parts["text_cache"] * part)
    tokens = spec.tokens(1, request.height, request.width)
    # A rank that shares tokens keeps the keys of the heads that it works on.
    keys = 2 * branches * held * queue.context_frames * tokens * transformer.width * dtype_bytes
    active = min(queue.num_steps, queue.num_blocks or queue.num_steps)
    # Of the right neighbour's first frames; and where left ones are kept, of each block's last ones.
    parts["keys"] = keys * (1 + active * (queue.left_source == "cache")) // grid.sharers
    # The first rank has every block that is in the queue: its latents at two levels, and what a solver keeps.
    block = channels * queue.block_frames * height * width * FP32_BYTES
    parts["latents"] = 5 * active * block if rank == ranks[0] else 0
    denoise = parts["text_cache"] + parts["activations"]
    # A rank that also decodes does so between two block-steps.
    working = parts["latents"] + parts["keys"] + max(denoise, parts["text_cache"] + parts["decode"])
    return {**parts, "peak": parts["weights"] + working}


def on_one_device(by_rank: list[dict[str, int]], sharing: int) -> dict[str, int]:
    """ "weights" and "peak" of the fullest device, of which `sharing` ranks share one."""
    found = {part: [parts[part] for parts in by_rank] for part in ("weights", "peak")}
    return {part: sum(sorted(sizes, reverse=True)[:sharing]) for part, sizes in found.items()}


def largest_part(by_rank: list[dict[str, int]]) -> str:
    """What the fullest rank needs most for at its peak, as of `PARTS`."""
    fullest = max(by_rank, key=lambda parts: parts["peak"])
    stages = ("text_cache", "activations"), ("decode",)
    at_peak = max(stages, key=lambda stage: sum(fullest[part] for part in stage))
    return max(("weights", "latents", "keys", *at_peak), key=lambda part: fullest.get(part, 0))


def fitting_tile(request: Request, spec: ModelSpec, fits: Callable[[Request], bool]) -> int | None:
    """The largest decode tiles, smaller than a request's own, with which it fits; None: there are none."""
    assert request.height and request.width
    tile = request.vae_tile
    while (tile := spec.vae.smaller_tile(request.height, request.width, tile)) is not None:
        if fits(replace(request, vae_tile=tile)):
            return tile
    return None


def fitting_frames(request: Request, spec: ModelSpec, fits: Callable[[Request], bool]) -> int | None:
    """The most frames with which a request that does not fit as a whole would; None: not even one."""
    ratio = spec.vae.temporal_compression
    assert request.num_frames
    if request.method != "full":
        return None  # its memory hardly grows with them
    least, most = 0, (request.num_frames - 1) // ratio + 1
    while most - least > 1:
        middle = (least + most) // 2
        shorter = replace(request, num_frames=(middle - 1) * ratio + 1)
        least, most = (middle, most) if fits(shorter) else (least, middle)
    return (least - 1) * ratio + 1 if least else None


def way_out(request: Request, spec: ModelSpec, fits: Callable[[Request], bool]) -> str:
    """What a request that does not fit would fit with, to be added to what is said of it."""
    if tile := fitting_tile(request, spec, fits):
        return f"; fits with decode tiles of {tile}"
    if frames := fitting_frames(request, spec, fits):
        return f"; fits with {frames} frames"
    return ""
