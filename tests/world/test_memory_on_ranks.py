"""Memory that ranks need to denoise a video in frame blocks, compared with its estimate."""

from pathlib import Path

from denoised_memory import estimated_of_peak, save_model
from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.testing import run_world

CASES: list[tuple[dict[str, object], Placement]] = [
    ({"method": "dualparal", "lag": 2, "left_context": "cache"}, Placement.of(ranks=2, pipeline_degree=2)),
    ({"method": "windowed"}, Placement.of(ranks=2, attention="ulysses")),
]


def on_rank(world: World, folder: Path) -> list[float]:
    return [estimated_of_peak(world, folder, *case) for case in CASES]


def test_each_rank_needs_what_is_estimated(tmp_path: Path) -> None:
    """Layer slices keep hidden states on their way; ranks that share tokens keep one copy of the text."""
    by_rank = run_world(on_rank, 2, save_model(tmp_path))
    assert all(0.88 < ratio < 1.04 for ratios in by_rank for ratio in ratios), by_rank
