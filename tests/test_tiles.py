"""Tiled decodes: equal to diffusers' on any number of ranks, with smaller tiles if memory runs out."""

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
from PIL import Image
from torch import Tensor

from paradit.config.errors import InputError, OutOfMemory
from paradit.config.methods.method import check_placement, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.config.tiles import grid
from paradit.distributed.agreement import Agreement
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.models.spec import read_spec
from paradit.models.wan.decoder import _denormalise
from paradit.progress import Progress
from paradit.stages.decode import decode, frames, pictures
from paradit.testing import run_world
from paradit.text_to_video import load
from test_stages import Kept, jobs, placement
from tiny import VARIANTS, decoded, save_folder, save_hunyuan_folder

SIZES = [(8, 8), (4, 12), (5, 9), (7, 6), (13, 4), (10, 11)]
"""Sizes (height, width) of latents, which are cut into tiles of 4 that begin 3 apart."""


@pytest.fixture(scope="module", params=[*VARIANTS, "hunyuan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save = save_hunyuan_folder if request.param == "hunyuan" else lambda f: save_folder(request.param, f)
    return load(read_spec(save(folder)), "fp32", stages=("decode",))


def latents_of(model: Any, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, model.spec.vae.z_dim, frames, height, width, generator=generator)


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
    seen = np.zeros(size, int)
    for tile in cut.tiles:
        rows, columns = tile.rows, tile.columns
        assert side is None or len(cut.tiles) == 1 or max(rows.size, columns.size) <= side
        assert rows.stop <= size[0]
        assert columns.stop <= size[1]
        seen[rows.start : rows.start + rows.kept, columns.start : columns.start + columns.kept] += 1
    assert (seen == 1).all()
    for ranks in (1, 2, 5):
        hands = cut.dealt(ranks)
        assert sorted(number for hand in hands for number in hand) == list(range(len(cut.tiles)))
        areas = [sum(cut.tiles[number].area for number in hand) for hand in hands]
        assert max(areas) - min(areas) <= max(tile.area for tile in cut.tiles)
        assert cut.dealt_areas(ranks) == sorted(areas)
    assert cut.largest_area == max(tile.area for tile in cut.tiles)
    assert (cut.num_tiles, cut.area) == (len(cut.tiles), sum(tile.area for tile in cut.tiles))


def test_frames_leave_at_once_and_nothing_grows_with_length(model: Any) -> None:
    """A decode holds the same memory at each frame, however long the video is."""
    import gc

    latents = latents_of(model, 16, 8, 8)
    held = []
    for _ in decoded(model, latents, model.spec.vae.tile_multiple):
        gc.collect()
        held.append(sum(o.numel() for o in gc.get_objects() if issubclass(type(o), Tensor)))
    assert len(held) == 16
    assert max(held[6:]) == max(held[6:11])


def test_parked_caches_change_nothing(model: Any) -> None:
    latents, tile = latents_of(model, 3, 8, 8), model.spec.vae.tile_multiple
    plain, parked = (np.stack(list(frames(model, latents, tile, Progress(), park=park))) for park in (0, 1))
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
        ({"decode": (0, 1, 2), "decode_degree": 2}, "decode_degree must be 1 or 3, all that decode, got 2"),
        ({"decode_degree": 2}, "decode_degree must be 1, since one rank decodes, got 2"),
        ({"decode": (0, 1), "decode_degree": 0}, "decode_degree must be 1 or 2, all that decode, got 0"),
    ],
)
def test_degrees_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Placement(ranks=3, **fields)


def test_too_few_tiles(tmp_path: Path) -> None:
    spec = read_spec(save_folder("wan21", tmp_path))
    where = Placement(ranks=3, denoise=(0,), decode=(0, 1, 2), decode_degree=3)
    request = resolve(Request(prompt="a", width=96, height=96, num_frames=5), spec)
    with pytest.raises(InputError, match=r"tiles of 256 pixels \(1\): use a vae_tile of 64, or a decode_deg"):
        check_placement(where, request, spec)
    check_placement(where, replace(request, vae_tile=64), spec)
    tiny = resolve(Request(prompt="a", width=16, height=16, num_frames=5), spec)
    with pytest.raises(InputError, match=r"16x16 has tiles of 256 pixels \(1\): use a decode_degree of 1"):
        check_placement(where, tiny, spec)


def decoded_together(
    world: World, folder: Path, latents: Tensor, tile: int, failing: dict[int, list[Any]]
) -> tuple[np.ndarray | None, list[str]]:
    """Decode on ranks that share the tiles; return the frames or None, and the warnings.

    failing: for each rank, (exception, number of the piece that raises it) for each attempt.
    """
    model = load(read_spec(folder), "fp32", stages=("decode",))
    told = Warned()
    plans = iter(failing.get(world.rank, []))
    decoder = type(model).decoder

    def failing_decoder(self: Any, latents: Tensor, *, park: bool = False) -> Any:
        made: Any = decoder(self, latents, park=park)
        plan = next(plans, None)
        if plan is not None:
            made.pieces = Failing(made.pieces, *plan)
        return made

    type(model).decoder = failing_decoder  # type: ignore[method-assign]
    try:
        found = decode(model, latents, tile, told, lambda all: np.stack(list(all)), world=world)
    except OutOfMemory as error:
        told.said.append(str(error))
        found = None
    return found, told.said


class Failing:
    """Function that decodes tiles, in which the piece numbered `turn` raises an exception."""

    def __init__(self, pieces: Any, error: Exception, turn: int) -> None:
        self._pieces, self._error, self._turn = pieces, error, turn

    def __call__(self, tile: Any) -> Iterator[Tensor]:
        for turn, piece in enumerate(self._pieces(tile)):
            if turn == self._turn:
                raise self._error
            yield piece


class Warned(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 1000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("kind", ["wan21", "wan22_ti2v", "hunyuan"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_frames_of_one_process(kind: str, ranks: int, tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path) if kind == "hunyuan" else save_folder(kind, tmp_path)
    model = load(read_spec(folder), "fp32", stages=("decode",))
    latents, tile = latents_of(model, 6, 10, 8), model.spec.vae.tile_multiple
    expected = np.concatenate(list(decoded(model, latents, tile)))
    first, *others = run_world(decoded_together, ranks, folder, latents, tile, {})
    assert np.array_equal(first[0], expected)
    assert others == [(None, [])] * (ranks - 1)


@pytest.mark.parametrize(("rank", "turn"), [(0, 0), (1, 1), (2, 2)])
def test_memory_that_runs_out_on_one_rank_is_answered_by_all(rank: int, turn: int, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    model = load(read_spec(folder), "fp32", stages=("decode",))
    latents = latents_of(model, 3, 18, 16)
    failing = {rank: [(torch.OutOfMemoryError("CUDA out of memory."), turn), None]}
    (found, said), *_ = run_world(decoded_together, 3, folder, latents, 64, failing)
    assert np.array_equal(found, np.concatenate(list(decoded(model, latents, 32))))
    assert said == [
        "memory ran out at the decode in tiles of 64 pixels: decoding again in tiles of 32 pixels"
    ]


def test_memory_that_runs_out_for_good(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    failing = {1: [(CPU_ERROR, 1)] * 2}
    shape = latents_of(load(read_spec(folder), "fp32", stages=("decode",)), 2, 18, 16)
    for found, said in run_world(decoded_together, 2, folder, shape, 64, failing):
        assert found is None
        assert (
            said[-1] == "memory ran out at the decode in tiles of 32 pixels, and there are no smaller tiles"
        )


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
from paradit.text_to_video import load

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
    output = tmp_path / "out" / "video.gif"
    output.parent.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(output)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "memory ran out at the decode of the whole picture: decoding again in tiles of 128 pixels"
    ]
    assert list(output.parent.iterdir()) == [output]
    with Image.open(output) as video:
        assert video.n_frames == 17


class Broken(Exception):
    """Exception that a decode does not handle."""


def test_an_attempt_s_file_is_begun_again(tmp_path: Path) -> None:
    """Memory runs out while frames are written, and the file holds nothing of the first attempt."""
    model = load(read_spec(save_folder("wan21", tmp_path / "model")), "fp32", stages=("decode",))
    latents, told, seen = latents_of(model, 3, 18, 16), Warned(), []

    def consume(stream: Iterator[np.ndarray]) -> np.ndarray:
        seen.append([])
        for frame in stream:
            seen[-1].append(frame)
            if len(seen) == 1 and len(seen[0]) == 3:
                raise MemoryError
        return np.stack(seen[-1])

    found = decode(model, latents, 64, told, consume)
    assert [len(attempt) for attempt in seen] == [3, 9]
    assert np.array_equal(found, np.concatenate(list(decoded(model, latents, 32))))
    assert len(told.said) == 1
    with pytest.raises(Broken):
        decode(model, latents, 64, told, broken)


def broken(_: Iterator[np.ndarray]) -> None:
    raise Broken


def on_ranks(world: World, model: Path, folder: Path, where: Placement) -> list[tuple[str, Any]]:
    """Make videos in tiles on this rank, without the third request's folder, and return the events."""
    report, spec = Kept(), read_spec(model)
    all_jobs = [replace(job, request=replace(job.request, vae_tile=32)) for job in jobs(model, folder)]
    all_jobs[2] = replace(all_jobs[2], latents=folder / "gone" / "l.safetensors")
    world_or_none = world if where.ranks > 1 else None
    make_videos(all_jobs, spec, where, report, overwrite=False, world=world_or_none)
    return report.told


@pytest.mark.parametrize(
    ("ranks", "groups"),
    [
        (2, "denoise=0-1 decode=0-1 encode=0"),
        (3, "denoise=0 decode=1,2 encode=1"),
        (3, "denoise=0 decode=0-2 encode=1"),
    ],
)
def test_the_engine_shares_decodes(ranks: int, groups: str, tmp_path: Path) -> None:
    """Ranks that share decodes write the files of one process; a request that fails, fails alone."""
    settings = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 2}
    model = save_folder("wan21", tmp_path / "tiny-wan", heads=3, **settings)
    shared = placement(ranks, groups, attention="ulysses")
    shared = replace(shared, decode_degree=len(shared.decode_ranks))
    for name, where in {"one": Placement(), "many": shared}.items():
        ran = run_world(on_ranks, where.ranks, model, tmp_path / name, where, timeout=120)
        events = [event for rank in ran for event in rank]
        paths = [Path(about["path"]).name for event, about in events if event == "result"]
        assert paths == ["0.mp4", "1.mp4", "3.mp4", "4.mp4"]
        ((index, count, message),) = [about for event, about in events if event == "failed"]
        assert (index, count) == (2, 5)
        assert "No such file or directory" in message
    for video in ("0.mp4", "1.mp4", "3.mp4", "4.mp4"):
        assert (tmp_path / "many" / video).read_bytes() == (tmp_path / "one" / video).read_bytes()
