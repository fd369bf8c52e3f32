"""How much memory each rank of a placement needs, from the spec alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paradit.distributed.shares import Shares
from paradit.placement import Placement
from paradit.requests import frames_at_once

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.requests import Request


def memory_by_rank(
    placement: Placement, request: Request, spec: ModelSpec, dtype_bytes: int
) -> list[dict[str, int]]:
    """Estimated bytes by part, as of `ModelSpec.memory_bytes`, for every rank; of a resolved request."""
    assert request.num_frames and request.height and request.width and request.guidance_scale
    size = (frames_at_once(request, spec), request.height, request.width)
    shares = Shares.equal(
        spec.tokens(*size), spec.transformers[0].num_attention_heads, placement.branch_ranks
    )
    branches = spec.num_branches(request.guidance_scale) // placement.cfg_degree
    alone = len(placement.denoise_ranks) == 1
    held = dict(zip(placement.denoise_ranks, shares.tokens * placement.cfg_degree, strict=True))
    return [
        spec.rank_memory_bytes(
            *size,
            dtype_bytes,
            placement.stages_of(rank),
            held=held.get(rank % placement.replica_ranks),
            cached=branches,
            # One process computes a branch after the other; several have both in one batch, or side by side.
            at_once=1 if alone else branches,
            tile=request.vae_tile,
        )
        for rank in range(placement.ranks)
    ]


def on_one_device(by_rank: list[dict[str, int]], sharing: int) -> dict[str, int]:
    """ "weights" and "peak" of the fullest device, of which `sharing` ranks share one."""
    return {
        part: sum(sorted((parts[part] for parts in by_rank), reverse=True)[:sharing])
        for part in ("weights", "peak")
    }
