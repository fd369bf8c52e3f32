"""Videos from pictures and from a video on several ranks: each class of model makes what one process makes.

One process is compared with diffusers in tests/unit/test_wan_pictures.py, and `paradit.parallelize` with one
process in tests/world/test_parallelize.py.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from lora_files import original, random_lora, saved
from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, latent_shape
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.find_lora import with_loras
from paradit.models.spec import ModelSpec, read_spec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling import full_sequence
from paradit.sampling.noise import PooledNoise, step_generator
from paradit.stages.conditions import conditions
from paradit.stages.encode import encode
from paradit.testing import run_world
from paradit.video.writer import open_video
from tiny import save_folder, transformer
from video_jobs import Kept, placement

LAYERS = 5
CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "I2V": ("i2v", {"image": "first.png"}),
    "FLF2V": ("flf2v", {"image": "first.png", "last_image": "last.png"}),
    "A14B": ("i2v_a14b", {"image": "first.png"}),
    "A14B with LoRAs": ("i2v_a14b", {"image": "first.png", "last_image": "last.png"}),
    "5B": ("wan22_ti2v", {"image": "first.png"}),
    "V2V": ("wan21", {"video": "video.mp4"}),
}
"""Variant of the tiny model of each class, and the files that a request gives it."""
ALL, FROM_PICTURES = list(CLASSES), list(CLASSES)[:-1]


@dataclass(frozen=True)
class Way:
    """Way to denoise a video of 3 latent frames, and where its stages run, by the number of ranks."""

    classes: list[str]
    method: dict[str, Any]
    where: dict[int, tuple[str, dict[str, Any]]]


WHOLE: dict[str, Any] = {"method": "dualparal", "block_frames": 3, "context_frames": 0}
BLOCKS: dict[str, Any] = {"method": "dualparal", "block_frames": 2, "context_frames": 1}
WAYS = {
    "at once": Way(
        ALL,
        {"method": "full"},
        {
            2: ("denoise=0 decode=1", {}),
            3: ("denoise=0-1 decode=2", {"cfg_degree": 2}),
            5: ("", {"attention": "ulysses"}),
        },
    ),
    # The layer slices take turns with the whole video.
    "one block": Way(
        FROM_PICTURES,
        WHOLE,
        {
            3: ("", {"pipeline_degree": 3}),
            5: ("denoise=0-3 decode=4", {"pipeline_degree": 2, "cfg_degree": 2}),
        },
    ),
    "two blocks": Way(
        FROM_PICTURES,
        BLOCKS,
        {
            2: ("", {"pipeline_degree": 2}),
            3: ("denoise=0-1 decode=2", {"pipeline_degree": 1}),
            5: ("", {"pipeline_degree": 5}),
        },
    ),
    "windows": Way(["5B"], BLOCKS | {"method": "windowed"}, {2: ("", {})}),
    "frame by frame": Way(["5B"], BLOCKS | {"method": "fifo"}, {3: ("denoise=0-1 decode=2", {})}),
}


@dataclass(frozen=True)
class Cell:
    """A cell of the table: a video of one class of model, made in one way on some number of ranks."""

    name: str
    spec: ModelSpec
    job: Job
    placement: Placement

    @property
    def bound(self) -> float:
        """Largest difference from one process: 0 unless ranks share tokens.

        A matrix product of fewer than four rows, which a rank may have, rounds differently on a CPU. Guidance
        multiplies the differences.
        """
        request = self.job.request
        grid = method_of(request).grid(self.placement, request, self.spec)
        return 0.0 if grid.sharers == 1 else 1e-5

    def made(self) -> Tensor:
        return load_file(str(self.job.latents))["latents"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files that requests give."""
    folder = tmp_path_factory.mktemp("given")
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 64, 3), np.uint8)
    for frame, name in zip(frames, ("first.png", "last.png"), strict=False):
        Image.fromarray(frame).save(folder / name)
    with open_video(folder / "video.mp4", 64, 32, 16) as video:
        for frame in frames:
            video.write(frame)
    return folder


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """Model of each class, by its name."""
    folder, size = tmp_path_factory.mktemp("models"), {"width": 64, "height": 32, "num_frames": 9}
    variants = {variant for variant, _ in CLASSES.values()}
    found = {
        variant: read_spec(
            save_folder(variant, folder / variant, layers=LAYERS, num_inference_steps=3, **size)
        )
        for variant in variants
    }
    module = transformer("i2v_a14b", layers=LAYERS)
    loras = [
        saved(original(random_lora(module, seed=seed)), folder / f"{seed}.safetensors") for seed in (1, 2)
    ]
    merged = with_loras(found["i2v_a14b"], [f"{loras[0]}@high", f"{loras[1]}=0.5@low"])
    return {name: merged if "LoRA" in name else found[variant] for name, (variant, _) in CLASSES.items()}


def cells_on(ranks: int, specs: dict[str, ModelSpec], given: Path, folder: Path) -> list[Cell]:
    """Return the cells for a number of ranks; their files go into a folder."""
    cells = []
    ways = {kind: way for kind, way in WAYS.items() if ranks == 1 or ranks in way.where}
    for kind, way in ways.items():
        groups, fields = way.where.get(ranks, ("", {}))
        for name in way.classes:
            files = {what: str(given / file) for what, file in CLASSES[name][1].items()}
            asked = Request.of(prompt="a circle", seed=5, guidance_scale=3.0, **files, **way.method)
            request = resolve(asked, specs[name])
            output = folder / f"{name}, {kind}.mp4"
            job = Job(request=request, output=str(output), latents=output.with_suffix(".safetensors"))
            cells.append(Cell(output.stem, specs[name], job, placement(ranks, groups, **fields)))
    return cells


@pytest.fixture(scope="module")
def expected(
    specs: dict[str, ModelSpec], given: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """Latents of each class and way in one process; those of one block are of the whole video at once."""
    cells = cells_on(1, specs, given, tmp_path_factory.mktemp("alone"))
    blocks = [cell for cell in cells if "one block" in cell.name]
    others = [cell for cell in cells if cell not in blocks]
    on_ranks(None, others)
    return {cell.name: cell.made() for cell in others} | {cell.name: at_once(cell) for cell in blocks}


def at_once(cell: Cell) -> Tensor:
    """Return the latents of a video, denoised at once from the noise of its only frame block."""
    request, model, progress = cell.job.request, load(cell.spec, "fp32"), Progress()
    channels, frames, height, width = latent_shape(request, cell.spec)
    (latents,) = full_sequence.denoise(
        model,
        PooledNoise((channels, height, width), request.seed, frames, 0).block(0),
        encode(model, request, progress),
        request=request,
        conditions=conditions(model, request, progress),
        noise=lambda step: step_generator(request.seed, step),
        progress=progress,
    )
    return latents


def on_ranks(world: World | None, cells: list[Cell]) -> list[tuple[str, Any]]:
    """Make the videos of all cells on the same ranks, and return what this rank tells of them."""
    told = []
    for cell in cells:
        report, own = Kept(), world
        if world and world.store:  # keys of its own: ranks must not read those of the cell before
            own = replace(world, store=PrefixStore(cell.name, world.store))
        make_videos([cell.job], cell.spec, cell.placement, report, overwrite=False, world=own)
        told += report.told
    return told


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_class_on_several_ranks(
    ranks: int, specs: dict[str, ModelSpec], given: Path, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    cells = cells_on(ranks, specs, given, tmp_path)
    told = [event for rank in run_world(on_ranks, ranks, cells, timeout=240) for event in rank]
    assert not [about for event, about in told if event == "failed"]
    results = [about for event, about in told if event == "result"]
    assert len(results) == len(cells)
    assert all("conditions" in result["seconds"] for result in results)
    worst = {cell.name: float((cell.made() - expected[cell.name]).abs().max()) for cell in cells}
    assert not {cell.name: worst[cell.name] for cell in cells if worst[cell.name] > cell.bound}


def test_the_classes_make_different_videos(expected: dict[str, Tensor]) -> None:
    """LoRAs, the last picture, and each way of denoising have an effect on the video."""
    videos = expected.values()
    assert all(video.isfinite().all() and video.std() > 0.1 for video in videos)
    assert len({video.numpy().tobytes() for video in videos}) == len(videos)
