"""Tiled decodes: equal to diffusers' on any number of ranks, with smaller tiles if memory runs out."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from messages import says
from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.config.tiles import grid
from paradit.distributed.agreement import Agreement
from paradit.models.spec import read_spec
from paradit.models.wan.decoder import _denormalise
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.stages.decode import decode, frames, pictures
from tiny import VARIANTS, decoded, latents_of, save_folder, save_hunyuan_folder
from video_jobs import Warned

SIZES = [(8, 8), (4, 12), (5, 9), (7, 6), (13, 4), (10, 11)]
"""Sizes (height, width) of latents, which are cut into tiles of 4 that begin 3 apart."""


@pytest.fixture(scope="module", params=[*VARIANTS, "hunyuan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save = save_hunyuan_folder if request.param == "hunyuan" else lambda f: save_folder(request.param, f)
    return load(read_spec(save(folder)), "fp32", stages=("decode",))


def by_diffusers(model: Any, latents: Tensor, tile: int | None) -> Tensor:
    """Return the output of the VAE's own `decode`, in tiles of `tile` pixels."""
    vae = model._pipeline.vae
    vae.use_tiling = False
    if tile is not None:
        stride = tile * 3 // 4
        vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=stride,
            tile_sample_stride_width=stride,
        )
    with torch.no_grad():
        wan = isinstance(vae, AutoencoderKLWan)
        z = _denormalise(vae, latents) if wan else latents / vae.config.scaling_factor
        return vae.decode(z).sample


def by_us(model: Any, latents: Tensor, tile: int | None) -> Tensor:
    """Return the samples from which our decoder makes frames."""
    scale, decoder = model.spec.vae.spatial_compression, model.decoder(latents)
    kept = []

    class Recorder:
        def postprocess_video(self, video: Tensor, **_: Any) -> np.ndarray:
            kept.append(video.clone())
            return np.zeros((1, 1))

    decoder._video_processor = Recorder()
    cut = model.spec.vae.grid(latents.shape[3] * scale, latents.shape[4] * scale, tile)
    list(decoder.frames(pictures(decoder, cut, Agreement(None, latents.device))))
    return torch.cat(kept, dim=2)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_of_diffusers_bit_for_bit(model: Any, size: tuple[int, int]) -> None:
    latents = latents_of(model, 5, *size)
    tile = model.spec.vae.tile_multiple
    expected = by_diffusers(model, latents, tile)
    assert torch.equal(by_us(model, latents, tile), expected)
    assert not torch.equal(by_us(model, latents, None), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_whole_pictures_too(model: Any, num_frames: int) -> None:
    latents = latents_of(model, num_frames, 4, 6)
    assert torch.equal(by_us(model, latents, None), by_diffusers(model, latents, None))


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 4), (90, 160), (13, 7), (8, 64)])
@pytest.mark.parametrize("side", [None, 4, 8, 32])
def test_tiles_cover_the_picture_once(size: tuple[int, int], side: int | None) -> None:
    cut = grid(*size, side)
    tiles, seen = cut.tiles, np.zeros(size, int)
    for tile in tiles:
        rows, columns = tile.rows, tile.columns
        assert side is None or len(tiles) == 1 or max(rows.size, columns.size) <= side
        assert rows.stop <= size[0]
        assert columns.stop <= size[1]
        seen[rows.start : rows.start + rows.kept, columns.start : columns.start + columns.kept] += 1
    assert (seen == 1).all()
    for ranks in (1, 2, 5):
        hands = cut.dealt(ranks)
        assert sorted(number for hand in hands for number in hand) == list(range(len(tiles)))
        areas = [sum(tiles[number].area for number in hand) for hand in hands]
        assert max(areas) - min(areas) <= max(tile.area for tile in tiles)
        assert cut.dealt_areas(ranks) == sorted(areas)
    assert cut.largest_area == max(tile.area for tile in tiles)
    assert (cut.num_tiles, cut.area) == (len(tiles), sum(tile.area for tile in tiles))


def test_frames_leave_at_once_and_nothing_grows_with_length(model: Any) -> None:
    """A decode holds the same memory at each frame, however long the video is."""
    latents = latents_of(model, 16, 8, 8)
    held = []
    gc.freeze()  # what is there before the decode is neither searched nor counted
    try:
        for _ in decoded(model, latents, model.spec.vae.tile_multiple):
            gc.collect()
            held.append(sum(o.numel() for o in gc.get_objects() if issubclass(type(o), Tensor)))
    finally:
        gc.unfreeze()
    assert len(held) == 16
    assert max(held[6:]) == max(held[6:11])


def test_parked_caches_change_nothing(model: Any) -> None:
    latents, tile = latents_of(model, 3, 8, 8), model.spec.vae.tile_multiple
    plain, parked = (
        np.stack(list(frames(model, latents, tile, Progress(), park=park))) for park in (False, True)
    )
    assert np.array_equal(plain, parked)


# The option


@pytest.mark.parametrize(
    ("variant", "tile", "said"),
    [
        ("wan21", 100, "multiple of 32 pixels .* got 100: the nearest is 96"),
        ("wan21", 0, "multiple of 32 pixels .* got 0: the nearest is 32"),
        ("wan21", -64, "got -64: the nearest is 32"),
        ("wan21", 1.5, "vae_tile must be a whole number, got 1.5"),
        ("wan22_ti2v", 96, "multiple of 64 pixels .* got 96: the nearest is 128"),
    ],
)
def test_tiles_that_cannot_be(variant: str, tile: Any, said: str, tmp_path: Path) -> None:
    spec = read_spec(save_folder(variant, tmp_path))
    with pytest.raises(InputError, match=said):
        resolve(Request(prompt="a", vae_tile=tile), spec)


def test_what_is_left_open(tmp_path: Path) -> None:
    wan = read_spec(save_folder("wan21", tmp_path / "wan"))
    hunyuan = read_spec(save_hunyuan_folder(tmp_path / "hunyuan"))
    asked = Request(prompt="a", width=704, height=480, num_frames=5)
    request = resolve(asked, wan)
    assert request.vae_tile is None
    assert resolve(asked, hunyuan).vae_tile == 256
    both = Placement(ranks=2, decode=(0, 1), decode_degree=2)
    assert both.tiled(request, wan).vae_tile == 256
    assert Placement(ranks=2, decode=(0, 1)).tiled(request, wan) == request


def test_smaller_tiles(tmp_path: Path) -> None:
    vae = read_spec(save_folder("wan21", tmp_path)).vae
    found, tile = [], None
    while (tile := vae.smaller_tile(480, 832, tile)) is not None:
        found.append(tile)
    assert found == [256, 128, 64, 32]
    assert vae.smaller_tile(96, 96, None) == vae.smaller_tile(96, 96, 256) == 32  # half of 96 is 48
    assert vae.smaller_tile(480, 832, 96) == 32
    assert vae.smaller_tile(32, 32, None) is None


def test_tiles_need_less_memory_by_the_estimate(tmp_path: Path) -> None:
    for spec in (
        read_spec(save_folder("wan21", tmp_path / "wan")),
        read_spec(save_hunyuan_folder(tmp_path / "hunyuan")),
    ):
        whole, tiled, small = (spec.vae.decode_bytes(704, 1280, tile) for tile in (None, 256, 128))
        assert whole > tiled > small
        parts = spec.memory_bytes(17, 704, 1280, 2, 256)
        assert parts["decode"] == tiled


# Several ranks


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decode": (0, 1, 2), "decode_degree": 2}, "decode_degree .* 1 or 3, .* got 2"),
        ({"decode_degree": 2}, "decode_degree .* 1, .* got 2"),
        ({"decode": (0, 1), "decode_degree": 0}, "decode_degree .* 1 or 2, .* got 0"),
    ],
)
def test_degrees_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Placement(ranks=3, **fields)


def test_too_few_tiles(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan21", tmp_path))
    where = Placement(ranks=3, denoise=(0,), decode=(0, 1, 2), decode_degree=3)
    request = resolve(Request(prompt="a", width=96, height=96, num_frames=5), spec)
    with pytest.raises(InputError, match=r"the 1 tile of 256 pixels .*: use a vae_tile of 64, .*decode_deg"):
        check_placement(where, request, spec)
    check_placement(where, replace(request, vae_tile=64), spec)
    tiny = resolve(Request(prompt="a", width=16, height=16, num_frames=5), spec)
    with pytest.raises(InputError, match=r"the 1 tile of 256 pixels .* 16x16: use a decode_degree of 1"):
        check_placement(where, tiny, spec)


LIMITED = """
import resource, sys
from pathlib import Path
import psutil, torch
from paradit.engine.job import Job
from paradit.engine.output import write_output
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.config.requests import Request
from paradit.config.methods.method import resolve
from paradit.stages.decode import decode
from paradit.pipeline import load

class Said(Progress):
    def warn(self, message):
        print(message)

folder, output = sys.argv[1:]
spec = read_spec(Path(folder))
model = load(spec, "fp32", stages=("decode",))
request = resolve(Request(prompt="a", width=256, height=256, num_frames=17), spec)
job = Job(request=request, output=output, latents=None)
latents = torch.randn(1, 16, 5, 32, 32)
decode(model, latents[..., :4, :4], None, Progress(), list)  # what is loaded only when it is needed
most = psutil.Process().memory_info().vms + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
def consume(frames):
    write_output(job, spec, latents, frames, overwrite=False)
decode(model, latents, request.vae_tile, Said(), consume)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process's memory")
def test_the_allocator_s_own_error(tmp_path: Path) -> None:
    """A memory limit lets torch decode in tiles, but not the whole picture (640 MiB)."""
    folder = save_hunyuan_folder(tmp_path / "model")
    output = tmp_path / "out" / "video"
    output.parent.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(output)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (warning,) = ran.stdout.splitlines()
    assert says(warning, "memory ran out .. whole picture .. tiles of 128 pixels")
    assert list(output.parent.iterdir()) == [output]
    assert len(list(output.glob("*.png"))) == 17


class Broken(Exception):
    """Exception that a decode does not handle."""


def test_an_attempt_s_file_is_begun_again(tmp_path: Path) -> None:
    """Memory runs out while frames are written, and the file holds nothing of the first attempt."""
    model = load(read_spec(save_folder("wan21", tmp_path / "model")), "fp32", stages=("decode",))
    latents, told = latents_of(model, 3, 18, 16), Warned()
    seen: list[list[np.ndarray]] = []

    def consume(stream: Iterator[np.ndarray]) -> np.ndarray:
        seen.append([])
        for frame in stream:
            seen[-1].append(frame)
            if len(seen) == 1 and len(seen[0]) == 3:
                raise MemoryError
        return np.stack(seen[-1])

    found = decode(model, latents, 64, told, consume)
    assert [len(attempt) for attempt in seen] == [3, 9]
    assert found is not None and np.array_equal(found, np.concatenate(list(decoded(model, latents, 32))))
    assert len(told.said) == 1
    with pytest.raises(Broken):
        decode(model, latents, 64, told, broken)


def broken(_: Iterator[np.ndarray]) -> None:
    raise Broken
