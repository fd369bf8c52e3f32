"""Video formats: each is written, read back and compared; an aborted one leaves no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from paradit.config.errors import InputError
from paradit.shapes.scenes import Scene, draw
from paradit.video.contact_sheet import contact_sheet
from paradit.video.frame import Frame
from paradit.video.reader import read_video
from paradit.video.writer import MAX_CRF, check_target, growing_name, open_video

WIDTH, HEIGHT, NUM_FRAMES = 64, 48, 9


@pytest.fixture(scope="module")
def frames() -> Frame:
    scene = Scene("orange", "square", "moving right", "blue")
    return draw(scene, NUM_FRAMES, np.random.default_rng(0), size=WIDTH)[:, :HEIGHT].copy()


def write(path: Path, frames: Frame, fps: float = 16, overwrite: bool = False) -> None:
    with open_video(path, WIDTH, HEIGHT, fps, overwrite=overwrite) as video:
        for frame in frames:
            video.write(frame)


@pytest.mark.parametrize("fps", [16, 23.976, 0.5])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mov", "a.mkv", "A.GIF"])
def test_a_file_reads_back(tmp_path: Path, frames: Frame, name: str, fps: float) -> None:
    write(tmp_path / name, frames, fps)
    again, rate = read_video(tmp_path / name)
    assert again.shape == frames.shape
    if not name.endswith("GIF"):  # a GIF's rate is tested by its durations
        assert rate == pytest.approx(fps, rel=1e-3)
    difference = again.astype(int) - frames
    assert np.abs(difference).mean() < 3
    assert np.abs(difference.mean((0, 1, 2))).max() < 2, "the colours have shifted"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_mp4_is_what_browsers_open(tmp_path: Path, frames: Frame) -> None:
    import av

    write(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == context.color_primaries == context.color_trc == 1  # BT.709
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index must be in front"


def test_gif_loops_at_the_right_mean_rate(tmp_path: Path, frames: Frame) -> None:
    write(tmp_path / "a.gif", frames, fps=16)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert set(durations) <= {60, 70}
    assert sum(durations) == pytest.approx(1000 * NUM_FRAMES / 16, abs=5)


def test_png_folder_is_exact(tmp_path: Path, frames: Frame) -> None:
    write(tmp_path / "frames", frames)
    files = sorted((tmp_path / "frames").iterdir())
    assert [file.name for file in files] == [f"{index:05d}.png" for index in range(NUM_FRAMES)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mov", "a.mkv", "a"])
def test_a_file_is_watched_while_it_grows(tmp_path: Path, frames: Frame, name: str) -> None:
    part = growing_name(tmp_path / name)
    assert part == tmp_path / f"a.part{Path(name).suffix}"
    with open_video(tmp_path / name, WIDTH, HEIGHT, 16, part=part) as video:
        for number in range(72):
            video.write(frames[number % NUM_FRAMES])
        assert not (tmp_path / name).exists()
        there = len(list(part.iterdir())) if name == "a" else len(read_video(part)[0])
        assert there >= 36
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert growing_name("a.gif") is None


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_same_frames_give_the_same_file(tmp_path: Path, frames: Frame, suffix: str) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}{suffix}", frames)
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert content == (tmp_path / f"b{suffix}").read_bytes()
    assert b"moof" not in content


@pytest.mark.parametrize("suffix", list(MAX_CRF))
def test_a_larger_rate_factor_makes_a_smaller_file(tmp_path: Path, frames: Frame, suffix: str) -> None:
    for crf in (None, 5, 40):
        path = tmp_path / f"{crf}{suffix}"
        with open_video(path, WIDTH, HEIGHT, 16, crf=crf) as video:
            for frame in frames:
                video.write(frame)
    small, usual, large = ((tmp_path / f"{crf}{suffix}").stat().st_size for crf in (40, None, 5))
    assert small < usual < large


def test_rate_factors_that_are_refused(tmp_path: Path) -> None:
    for name, crf, reason in (
        ("a.mp4", 52, "crf must be at most 51, got 52"),
        ("a.webm", 64, "crf must be at most 63, got 64"),
        ("a.mkv", -1, "crf must be at least 0, got -1"),
        ("a.mov", 1.5, "crf must be a whole number, got 1.5"),
        ("a.gif", 20, "crf is for .mp4, .webm, .mov, .mkv, but the output is"),
        ("frames", 20, "crf is for .mp4, .webm, .mov, .mkv, but the output is"),
    ):
        with pytest.raises(InputError, match=reason):
            check_target(tmp_path / name, crf=crf)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "frames"])
def test_nothing_is_left_behind(tmp_path: Path, frames: Frame, name: str) -> None:
    with pytest.raises(KeyboardInterrupt), open_video(tmp_path / name, WIDTH, HEIGHT, 16) as video:
        video.write(frames[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_overwrite(tmp_path: Path, frames: Frame, name: str) -> None:
    write(tmp_path / name, frames)
    with pytest.raises(InputError, match="exists"):
        write(tmp_path / name, frames)
    with pytest.raises(RuntimeError), open_video(tmp_path / name, WIDTH, HEIGHT, 16, overwrite=True) as video:
        video.write(frames[0])
        raise RuntimeError  # the older video must stay
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    write(tmp_path / name, frames[:3], overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    if name == "frames":
        assert len(list((tmp_path / name).iterdir())) == 3
    else:
        assert len(read_video(tmp_path / name)[0]) == 3


def test_targets_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for name, reason in {
        "a.avi": r"unknown suffix '.avi'; known: .mp4, .webm, .mov, .mkv, .gif",
        "none/a.mp4": "does not exist",
        "file/a.mp4": "is not a folder",
        "file": "is a file",
        "mine": "files that are not frames",
        "x" * 300 + ".mp4": "not a usable name: File name too long .at most 255 bytes",
        "a\0.mp4": "not a usable name: embedded null byte",
    }.items():
        with pytest.raises(InputError, match=reason):
            check_target(tmp_path / name, overwrite=True)
    with pytest.raises(InputError, match="cannot be written"):
        check_target("/proc/a.mp4")  # not even root writes there
    for folder in (".", Path.cwd()):
        with pytest.raises(InputError, match="is the current folder or a mount point"):
            check_target(folder, overwrite=True)
    with pytest.raises(InputError, match="at most 50"):
        check_target(tmp_path / "a.gif", fps=60)
    with (
        pytest.raises(InputError, match="width and height of a video must be even"),
        open_video(tmp_path / "a.mp4", 63, 48, 16),
    ):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "mine"]


def test_wrong_frames_are_refused(tmp_path: Path, frames: Frame) -> None:
    with pytest.raises(ValueError, match="a frame is"), open_video(tmp_path / "a.mp4", 32, 32, 16) as video:
        video.write(frames[0])
    with pytest.raises(ValueError, match="no frame"), open_video(tmp_path / "a.mp4", 32, 32, 16):
        pass
    with pytest.raises(InputError, match="cannot be read"):
        read_video(tmp_path / "a.mp4")


def test_contact_sheet(frames: Frame) -> None:
    sheet = contact_sheet([frames, frames[:2]], ["one", "two"], columns=3)
    assert sheet.width == 3 * (WIDTH + 4) + 4
    corner = np.asarray(sheet)[4 + 18 : 4 + 18 + HEIGHT, 4 : 4 + WIDTH]
    assert np.array_equal(corner, frames[0])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([frames], ["one", "two"])
