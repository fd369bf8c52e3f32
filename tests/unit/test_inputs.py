"""Pictures and videos that a request gives: reading, fitting, and what is refused."""

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from paradit.cli.text import inputs_text
from paradit.config.errors import InputError
from paradit.config.given_values import as_files
from paradit.config.methods.method import resolve
from paradit.config.requests import ENDLESS, Request
from paradit.inputs.pictures import fitted_picture, picture_size
from paradit.inputs.videos import count_frames, fitted_video, video_facts
from paradit.models.published import published_spec
from paradit.models.warnings import warnings_for
from paradit.video.writer import open_video

T2V = published_spec("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
GREY = [10 + 4 * index for index in range(48)]
"""Values of the frames of `clip`."""


def spec(*takes: str, **needs: Any) -> Any:
    """Return the spec of a model that takes pictures."""
    return replace(T2V, takes=frozenset(takes), **needs)


I2V, V2V, CLEAN = spec("image", needs_image=True), spec("video"), spec("image", "last_image")
FLF2V = spec("image", "last_image", needs_image=True, needs_last_image=True)


def clip(path: Path, fps: float = 24, values: list[int] = GREY, size: tuple[int, int] = (96, 64)) -> Path:
    """Write a video whose frames are grey."""
    with open_video(path, *size, fps) as file:
        for value in values:
            file.write(np.full((size[1], size[0], 3), value, np.uint8))
    return path


def levels(frames: np.ndarray[Any, Any]) -> list[int]:
    """Return the original values of the frames of `clip`, which encoding changes by a level or two."""
    assert frames.std(axis=(1, 2, 3)).max() < 1
    return [min(GREY, key=lambda value: abs(value - mean)) for mean in frames.mean(axis=(1, 2, 3))]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A picture of 64x32 pixels, the left quarter red, the rest blue."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :16, 0], pixels[:, 16:, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    return tmp_path / "marked.png"


def test_fit(marked: Path) -> None:
    same = fitted_picture(marked, 64, 32, "cover")
    assert (same == np.asarray(Image.open(marked))).all()
    cover = fitted_picture(marked, 32, 32, "cover")  # the red quarter is cut off, but for its edge
    assert cover[:, 2:, 0].max() == 0 and cover[:, 2:, 2].min() == 255
    contain = fitted_picture(marked, 32, 32, "contain")
    assert contain[:8].max() == 0 and contain[24:].max() == 0
    assert tuple(contain[16, 0]) == (255, 0, 0) and tuple(contain[16, 31]) == (0, 0, 255)
    stretch = fitted_picture(marked, 32, 32, "stretch")
    assert tuple(stretch[0, 4]) == (255, 0, 0) and tuple(stretch[31, 20]) == (0, 0, 255)


def test_pictures_are_turned_as_exif_says(tmp_path: Path, marked: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the red left becomes the top
    Image.open(marked).save(tmp_path / "turned.png", exif=exif)
    assert picture_size("image", str(tmp_path / "turned.png")) == (32, 64)
    turned = fitted_picture(tmp_path / "turned.png", 32, 64, "cover")
    assert tuple(turned[4, 16]) == (255, 0, 0) and tuple(turned[40, 16]) == (0, 0, 255)


def picture_of(mode: str) -> Image.Image:
    """Return a picture of one colour in a mode of Pillow."""
    if mode == "I;16":
        return Image.fromarray(np.full((16, 16), 100 * 257, np.uint16))
    if mode in ("RGBA", "LA"):
        return Image.new(mode, (16, 16), (200, 200, 200, 128) if mode == "RGBA" else (200, 128))
    if mode == "P, transparent":
        palette = Image.new("P", (16, 16), 1)
        palette.putpalette([0, 0, 0, 90, 80, 70])
        palette.info["transparency"] = 1
        return palette
    return Image.new("RGB", (16, 16), (30, 60, 90)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("I;16", "png", (100, 100, 100)),
        ("I;16", "tiff", (100, 100, 100)),
        ("RGBA", "png", (100, 100, 100)),
        ("LA", "png", (100, 100, 100)),
        ("P, transparent", "png", (0, 0, 0)),
        ("CMYK", "tiff", (30, 60, 90)),
        ("L", "png", (55, 55, 55)),
        ("1", "png", None),
        ("RGB", "webp", (30, 60, 90)),
    ],
)
def test_kinds_of_pictures(tmp_path: Path, mode: str, suffix: str, expected: tuple[int, ...] | None) -> None:
    path = tmp_path / f"a.{suffix}"
    picture_of(mode).save(path, lossless=True)  # which other formats than WebP ignore
    pixels = fitted_picture(path, 16, 16, "cover")
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    if expected:
        assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("bits", "photometric", "level"), [(16, 1, 102), (12, 1, 102), (16, 0, 153)])
def test_grey_tiff_files(bits: int, photometric: int, level: int, tmp_path: Path) -> None:
    """The pixels, of which all bytes are equal, are the same with 12 and with 16 bits."""
    Image.fromarray(np.full((16, 16), 0x6666, np.uint16)).save(tmp_path / "a.tiff")
    content = (tmp_path / "a.tiff").read_bytes()
    for tag, before, after in ((258, 16, bits), (262, 1, photometric)):
        entry = struct.pack("<HHIH", tag, 3, 1, before)
        assert content.count(entry) == 1
        content = content.replace(entry, struct.pack("<HHIH", tag, 3, 1, after))
    (tmp_path / "a.tiff").write_bytes(content)
    assert (fitted_picture(tmp_path / "a.tiff", 16, 16, "cover") == level).all()


def test_grey_of_16_bits_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.full((16, 16), 200 * 257, np.uint16)
    values[:, 8:] = 100 * 257
    Image.fromarray(values).save(tmp_path / "a.png", transparency=200 * 257)
    pixels = fitted_picture(tmp_path / "a.png", 16, 16, "cover")
    assert not pixels[:, :8].any() and (pixels[:, 8:] == 100).all()


def test_grey_of_16_bits_in_a_pgm_file(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + np.full(256, 1606, ">u2").tobytes())
    assert (fitted_picture(tmp_path / "a.pgm", 16, 16, "cover") == 100).all()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("I", "has grey values with 32 bits or a sign, which are not supported"),
        ("F", "has floating-point values, which are not supported"),
        ("LAB", "has CIELAB colours, which are not supported"),
    ],
)
def test_values_that_are_not_supported(mode: str, said: str, tmp_path: Path) -> None:
    Image.new(mode, (16, 16)).save(tmp_path / "a.tiff")
    for picture in (tmp_path / "a.tiff", Image.new(mode, (16, 16))):
        with pytest.raises(InputError) as refused, as_files(Request(prompt="a", image=picture)) as asked:
            resolve(asked, I2V)
        assert said in str(refused.value)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv", "mov"])
@pytest.mark.parametrize(
    ("fps", "indices"),
    [
        (24, list(range(48))),
        (12, list(range(0, 48, 2))),
        (48, [index // 2 for index in range(96)]),
        (16, [3 * (index // 2) + index % 2 for index in range(32)]),
    ],
)
def test_rate_of_frames(tmp_path: Path, suffix: str, fps: float, indices: list[int]) -> None:
    path = clip(tmp_path / f"a.{suffix}", values=GREY)
    assert count_frames("video", str(path), fps, 1000) == len(indices)
    frames = fitted_video(path, 48, 32, "cover", fps=fps, num_frames=len(indices) + 2)
    assert levels(frames) == [GREY[index] for index in [*indices, indices[-1], indices[-1]]]


def test_videos_are_turned(tmp_path: Path) -> None:
    with open_video(tmp_path / "a.mp4", 96, 64, 24) as file:
        frame = np.zeros((64, 96, 3), np.uint8)
        frame[:, :24] = 255
        for _ in range(8):
            file.write(frame)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44
    assert content[matrix : matrix + 4] == (1 << 16).to_bytes(4, "big")
    # A quarter turn clockwise, as phones write it: the white left becomes the top.
    values = (0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    (tmp_path / "b.mp4").write_bytes(content)
    facts = video_facts("video", str(tmp_path / "b.mp4"), 24)
    assert (facts.width, facts.height) == (64, 96)
    turned = fitted_video(tmp_path / "b.mp4", 64, 96, "cover", fps=24, num_frames=1)[0]
    assert turned[:20].min() > 240 and turned[30:].max() < 15


def broken(kind: str, folder: Path) -> Path:
    """Write a file that is not a valid picture."""
    path = folder / f"{kind}.png"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("no picture")
        case "truncated":
            picture.save(path)
            path.write_bytes(path.read_bytes()[:-2000])
        case "huge":
            Image.new("1", (16400, 16400)).save(path)
        case "large":
            Image.new("1", (12000, 8000)).save(path)
        case "tiny":
            Image.new("RGB", (100, 8)).save(path)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "heic":
            path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
        case "animated":
            path = path.with_suffix(".gif")
            picture.save(path, save_all=True, append_images=[picture.rotate(90)])
        case "video":
            path = clip(path.with_suffix(".mp4"), values=GREY[:2])
    return path


REFUSED = {
    "empty": "image '{path}' is empty",
    "missing": "image '{path}' does not exist",
    "text": "image 'text.png' is not a picture in a known format: save it as PNG or JPEG",
    "truncated": "image 'truncated.png' is broken or cut off: it cannot be decoded",
    "huge": "image 'huge.png' has too many pixels: scale it down to at most 89 million",
    "large": "image 'large.png' has too many pixels: scale it down to at most 89 million",
    "tiny": "image 'tiny.png' has 100x8 pixels: each side must have at least 16",
    "folder": "image '{path}' is a folder: name a file",
    "pipe": "image '{path}' is not a regular file: name one",
    "device": "image '{path}' is not a regular file: name one",
    "heic": "image 'heic.png' is an HEIC picture, which is not supported: save it as JPEG or PNG",
    "animated": "image 'animated.gif' is animated (2 frames): save one of them as a picture",
    "video": "image 'video.mp4' is a video: give it as video, or save one of its frames as a picture",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pictures_that_are_refused(
    kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("p")
    monkeypatch.chdir(folder)  # messages show the beginning of long paths only
    path = broken(kind, folder).name
    with pytest.raises(InputError) as refused:
        resolve(Request(prompt="a", image=path), I2V)
    assert str(refused.value) == REFUSED[kind].replace("{path}", path)


def test_paths_that_are_none() -> None:
    class Path8:
        def __fspath__(self) -> bytes:
            return b"a.png"

    class NoPath:
        def __fspath__(self) -> int:
            return 3

    for path in (Path8(), NoPath()):
        with pytest.raises(InputError, match=r"image must be a path, got <.*Path"):
            resolve(Request(prompt="a", image=path), I2V)


@pytest.mark.parametrize("path", ["https://x.org/a.png", Path("https://x.org/a.png"), "data:image/png,A"])
def test_urls_are_refused(path: Any) -> None:
    with pytest.raises(InputError, match="is a URL: download it first"):
        resolve(Request(prompt="a", image=path), I2V)


@pytest.mark.parametrize("left", [0, 100, 1500, -300, -20])
def test_videos_that_are_cut_off(tmp_path: Path, left: int) -> None:
    path = clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError) as refused:
        resolve(Request(prompt="a", video=path), V2V)
    assert "\n" not in str(refused.value)


def test_videos_name_no_other_files(tmp_path: Path) -> None:
    """Playlists, which FFmpeg would follow, are not opened."""
    clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (tmp_path / "c.mp4").write_text("#EXTM3U\n#EXTINF:2,\na.mp4\n#EXT-X-ENDLIST\n")
    for name in ("b.mp4", "c.mp4"):
        with pytest.raises(InputError, match="cannot be decoded"):
            resolve(Request(prompt="a", video=tmp_path / name), V2V)


@pytest.mark.parametrize(
    ("asked", "model", "message"),
    [
        ({"image": "p"}, spec(), "makes videos from text alone"),
        ({"last_image": "p"}, I2V, "last_image must be left out: the model '{name}' takes image only"),
        ({}, I2V, "image is missing: the model '{name}' makes videos from a picture"),
        ({"last_image": "p"}, FLF2V, "last_image needs image, the picture of the first frame: give both"),
        (
            {"image": "p", "last_image": "p", "num_frames": ENDLESS, "method": "dualparal"},
            FLF2V,
            "last_image cannot be given for a video without an end: leave duration inf out",
        ),
        ({"image": "p", "video": "v"}, spec("image", "video"), "give image or video, not both"),
        ({"video": "p"}, V2V, "video 'p' is a picture: give it as image"),
        (
            {"image": "p"},
            FLF2V,
            "last_image is missing: the model '{name}' makes videos between two pictures",
        ),
        (
            {"last_image": "p", "num_frames": 1},
            CLEAN,
            "last_image needs num_frames of at least 5, got 1: leave last_image out",
        ),
        (
            {"video": "v", "method": "dualparal"},
            V2V,
            "method dualparal cannot change a video: use method full",
        ),
        ({"image": 5}, I2V, "image must be a path, got 5 (int)"),
        ({"strength": 0.5}, V2V, "strength needs video: it says how much of that video is changed"),
        ({"fit": "contain"}, V2V, "fit contain needs a picture or video to fit: give image or video"),
        (
            {"image": "p", "fit": "contian"},
            I2V,
            "fit must be one of cover, contain, stretch, got 'contian': did you mean 'contain'?",
        ),
        ({"video": "v", "strength": 1.5}, V2V, "strength must be from 0 to 1, got 1.5: the nearest is 1"),
        (
            {"video": "v", "strength": 0},
            V2V,
            "strength must be a finite number above 0, got 0 (1 keeps nothing of the video)",
        ),
        (
            {"video": "v", "strength": 0.01},
            V2V,
            "strength must be at least 0.02, so that one of the 50 steps is done, got 0.01",
        ),
        (
            {"video": "v", "strength": 0.1428, "num_inference_steps": 7},
            V2V,
            "strength must be at least 0.1429, so that one of the 7 steps is done, got 0.1428",
        ),
        (
            {"video": "v", "num_frames": 81},
            V2V,
            "num_frames must be at most 32, the frames of video 'v' at 16 fps, got 81: the nearest is 29",
        ),
    ],
)
def test_requests_that_are_refused(
    asked: dict[str, Any], model: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "p", "PNG")
    clip(tmp_path / "a.mp4").rename(tmp_path / "v")
    with pytest.raises(InputError) as refused:
        resolve(Request(prompt="a", **asked), model)
    assert message.replace("{name}", T2V.name) in str(refused.value)


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((832, 480), {}, (832, 480)),
        ((900, 1600), {}, (464, 832)),  # 473.7 and 842.1, rounded down as on Wan's cards
        ((1000, 1000), {}, (624, 624)),
        ((900, 1600), {"width": 480}, (480, 848)),
        ((900, 1600), {"height": 480}, (272, 480)),
        ((900, 1600), {"width": 832, "height": 480}, (832, 480)),
    ],
)
def test_size_follows_the_picture(
    tmp_path: Path, size: tuple[int, int], asked: dict[str, Any], expected: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    request = resolve(Request(prompt="a", image=tmp_path / "a.png", **asked), I2V)
    assert (request.width, request.height) == expected
    assert resolve(request.asked(), I2V) == request


def test_length_follows_the_video(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    request = resolve(Request(prompt="a", video=path), V2V)
    assert (request.num_frames, request.strength, request.fps) == (29, 0.8, 16)
    assert warnings_for(request, V2V) == ["video 'a.mp4': 24 fps converted to 16, 29 of 32 frames used"]
    assert inputs_text(request) == "video a.mp4 (96x64, 24 fps); fit cover"
    exact = resolve(Request(prompt="a", video=path, fps=24, num_frames=48, trim=True), V2V)
    assert exact.num_frames == 48
    assert warnings_for(exact, V2V) == []
    eight = resolve(
        Request(prompt="a", video=clip(tmp_path / "b.mp4", 16, GREY[:33]), fps=8, num_frames=13), V2V
    )
    assert warnings_for(eight, V2V) == ["video 'b.mp4': 16 fps converted to 8, 13 of 17 frames used"]
    assert count_frames("video", str(tmp_path / "b.mp4"), 8, 99) == 17


def test_pictures_in_words(tmp_path: Path) -> None:
    for name, size in (("a.png", (64, 32)), ("b.png", (40, 50))):
        Image.new("RGB", size).save(tmp_path / name)
    request = Request(prompt="a", width=64, height=32, num_frames=5, fit="stretch", image=tmp_path / "a.png")
    assert inputs_text(resolve(request, CLEAN)) == "image a.png (64x32)"
    both = resolve(replace(request, last_image=tmp_path / "b.png"), CLEAN)
    assert inputs_text(both) == "image a.png (64x32), last image b.png (40x50); fit stretch"
    assert inputs_text(resolve(Request(prompt="a"), CLEAN)) == ""


def test_a_last_picture_alone(marked: Path) -> None:
    request = resolve(Request(prompt="a", last_image=marked, width=64, height=32, num_frames=5), CLEAN)
    assert (request.image, request.last_image) == (None, str(marked))


@pytest.mark.parametrize(("mode", "kind"), [("F", "floating-point values"), ("LAB", "CIELAB colours")])
def test_pictures_of_kinds_that_are_not_supported(tmp_path: Path, mode: str, kind: str) -> None:
    picture = Image.new(mode, (16, 16))
    picture.save(tmp_path / "a.tiff")
    said = f"{kind}, which are not supported: save it as RGB with 8 bits"
    with pytest.raises(InputError) as refused:
        resolve(Request(prompt="a", image=tmp_path / "a.tiff"), I2V)
    assert str(refused.value) == f"image 'a.tiff' has {said}"
    with pytest.raises(InputError) as refused, as_files(Request(prompt="a", image=picture)):
        pass
    assert str(refused.value) == f"image has {said}"


def test_values_become_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    for value in (pixels[0], Image.fromarray(pixels[0])):
        with as_files(Request(prompt="a", image=value)) as given:
            path = given.image
            assert isinstance(path, str) and Path(path).stat().st_mode & 0o077 == 0o044
            assert Path(path).parent.stat().st_mode & 0o077 == 0
            assert (fitted_picture(path, 48, 32, "cover") == pixels[0]).all()
        assert not Path(path).exists()
    with as_files(Request(prompt="a", video=pixels)) as given:
        request = resolve(given, V2V)
        assert request.video and request.num_frames == 5
        assert (fitted_video(request.video, 48, 32, "cover", fps=16, num_frames=5) == pixels).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"image": np.zeros((8, 8, 3))},
            "image must be an array [H, W, 3] of uint8, got [8, 8, 3] of float64",
        ),
        ({"video": np.zeros((8, 8, 3), np.uint8)}, "video must be an array [F, H, W, 3] of uint8, got"),
        ({"video": np.zeros((0, 8, 8, 3), np.uint8)}, "video is empty: it has the shape [0, 8, 8, 3]"),
        ({"image": [1]}, "image must be a path, a PIL image, or an array [H, W, 3], got [1] (list)"),
        ({"image": [np.zeros((2, 2))]}, "or an array [H, W, 3], got [array([[0., 0.],"),
    ],
)
def test_values_that_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused, as_files(Request(prompt="a", **asked)):
        pass
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of small valid files, by their suffix, and some that are none."""
    folder = tmp_path_factory.mktemp("valid")
    for name in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        Image.new("RGB", (32, 32), "red").save(folder / f"a.{name}", name.upper())
    for name in ("mp4", "webm"):
        clip(folder / f"a.{name}", values=GREY[:3])
    np.save(folder / "a.npy", np.zeros((2, 16, 16, 3), np.uint8))
    return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_a_picture_or_one_line(
    tmp_path: Path, contents: dict[str, bytes], data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(sorted(contents)))
    if data.draw(st.booleans()):
        content = bytearray(contents[suffix])
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    for asked, model in ((Request(prompt="a", image=path), I2V), (Request(prompt="a", video=path), V2V)):
        try:
            resolve(asked, model)
        except InputError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 400
