"""A long video that can no longer be written: it ends soon, on all ranks, and the next one is made."""

import resource
from pathlib import Path
from typing import Any

import pytest

from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.events import Doing, Failed, Finished, Wrote
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.models.wan.transformer import WanBlock
from paradit.progress import Event, Progress
from paradit.scheduling.stages import AHEAD
from paradit.testing import run_world
from paradit.video.reader import read_video
from tiny import save_folder

STEPS, BLOCK = 4, 2
LONG, SHORT = 120, 3
"""Number of blocks of each of the two videos."""
MOST = 2**16
"""Largest number of bytes of a file; the long video exceeds it, and the short one does not."""


class Followed(Progress):
    """Progress that records the events, and the number of layers computed for each of two videos."""

    def __init__(self) -> None:
        super().__init__(self.hear)
        self.told: list[tuple[Any, ...]] = []
        self.written, self.computed, self._index = [0, 0], [0, 0], 0
        finish = WanBlock.finish

        def counted(*arguments: Any) -> Any:
            self.computed[self._index] += 1
            return finish(*arguments)

        WanBlock.finish = counted  # type: ignore[method-assign, assignment]

    def hear(self, event: Event) -> None:
        match event:
            case Doing(job=int(index)):
                self._index = index
            case Wrote():
                self.written[self._index] = event.num_frames
            case Failed():
                self.told.append(("failed", event.job, event.count, event.message))
            case Finished():
                self.told.append(("result", event.result["path"]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    sizes = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": STEPS, "fps": 16}
    return save_folder("wan21", folder, heads=3, layers=4, **sizes)


def on_ranks(
    world: World, model: Path, folder: Path, method: str, where: Placement
) -> tuple[list[tuple[Any, ...]], list[int], list[int]]:
    """Make a long video that no rank can write, and then a short one; return what `Followed` recorded."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, hard))
    spec, report = read_spec(model), Followed()
    sizes = {"block_frames": BLOCK, "context_frames": 1, "vae_tile": 32}
    jobs = [
        Job(
            request=resolve(
                Request.of(prompt="a", method=method, num_frames=4 * blocks * BLOCK - 3, **sizes), spec
            ),
            output=str(folder / f"{index}.mp4"),
            latents=None,
            index=index,
            count=2,
        )
        for index, blocks in enumerate((LONG, SHORT))
    ]
    make_videos(jobs, spec, where, report, overwrite=False, world=world)
    return report.told, report.written, report.computed


@pytest.mark.parametrize(
    ("method", "groups", "options"),
    [
        ("dualparal", "denoise=0-1 decode=0", {"pipeline_degree": 2}),
        ("dualparal", "denoise=0-3 decode=0", {"pipeline_degree": 2}),
        ("dualparal", "denoise=0-1 decode=2", {"pipeline_degree": 2}),
        ("dualparal", "denoise=1 decode=0,2", {"decode_degree": 2}),
        ("windowed", "denoise=0-1 decode=0", {"attention": "ulysses"}),
        ("fifo", "denoise=0-1 decode=2", {"attention": "ulysses"}),
    ],
)
def test_all_ranks_end_soon(
    method: str, groups: str, options: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    found = read_groups(groups)
    where = Placement.of(ranks=max(map(max, found.values())) + 1, **found, **options)
    told, written, computed = zip(
        *run_world(on_ranks, where.ranks, model, tmp_path, method, where), strict=True
    )
    assert sorted(event for of_rank in told for event in of_rank) == [
        ("failed", 0, 2, f"'a': File too large: {tmp_path / '0.part.mp4'}"),
        ("result", str(tmp_path / "1.mp4")),
    ]
    assert len(read_video(tmp_path / "1.mp4")[0]) == 4 * SHORT * BLOCK - 3
    assert [path.name for path in tmp_path.iterdir()] == ["1.mp4"]
    # Blocks that were written, in the queue, on their way to the decoder, and begun in two more rounds.
    frames = max(of_rank[0] for of_rank in written)
    begun = frames // (4 * BLOCK) + 1 + STEPS + (AHEAD + 1) + 2
    assert 0 < begun < LONG / 4
    for long, short in computed:
        assert long * SHORT <= short * begun
