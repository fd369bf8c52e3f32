"""Long videos of HunyuanVideo: by the command line on any ranks, and decoded while they are made."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from made_videos import latents_in
from messages import says
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.video.reader import read_video
from runs import Command, finished, run_folder
from tiny import decoded, save_hunyuan_folder

STEPS, BLOCK = 4, 2
FRAMES = 34  # ten latent frames in five blocks; three decoded frames are dropped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with two double and two single blocks, each with three heads."""
    folder = tmp_path_factory.mktemp("models") / "tiny-hunyuan"
    sizes: dict[str, Any] = {
        "width": 48,
        "height": 48,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "fps": 16,
    }
    return save_hunyuan_folder(folder, heads=3, **sizes)


def arguments(
    model: Path, *options: str, frames: int | None = FRAMES, method: str = "dualparal"
) -> list[str]:
    blocks = ["--method", method, "--block-frames", str(BLOCK), "--context-frames", "1"]
    return [
        *["generate", "a red circle", "--model", str(model), *blocks, "-o", "v.mp4", *options],
        *(["--num-frames", str(frames), "--latents", "l.safetensors"] if frames else []),
    ]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the video that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    finished(folder, *arguments(model))
    return folder


@pytest.mark.parametrize(
    "options",
    [["--ranks", "2"], ["--ranks", "3", "--pipeline-degree", "3"], ["--placement", "denoise=0-1 decode=2"]],
    ids=" ".join,
)
def test_the_same_on_any_ranks(model: Path, alone: Path, tmp_path: Path, options: list[str]) -> None:
    finished(tmp_path, *arguments(model, *options))
    assert torch.equal(latents_in(tmp_path), latents_in(alone))
    assert (tmp_path / "v.mp4").read_bytes() == (alone / "v.mp4").read_bytes()
    assert len(read_video(tmp_path / "v.mp4")[0]) == FRAMES


def test_tiles_are_shared_while_it_is_made(model: Path, alone: Path, tmp_path: Path) -> None:
    shared = ["--placement", "denoise=1-2 decode=0,3", "--decode-degree", "2"]
    for name, options in {"shared": shared, "one": []}.items():
        (tmp_path / name).mkdir()
        finished(tmp_path / name, *arguments(model, *options, "--vae-tile", "32"))
        assert torch.equal(latents_in(tmp_path / name), latents_in(alone))
    assert (tmp_path / "shared" / "v.mp4").read_bytes() == (tmp_path / "one" / "v.mp4").read_bytes()


def test_prompts_of_other_lengths(model: Path, alone: Path, tmp_path: Path) -> None:
    """Text tokens are part of the sequence, so its length changes from block to block with the prompt."""
    then = ["--prompt-at", "1.5s", "a much longer text about a blue square"]
    for ranks in ("1", "2"):
        (tmp_path / ranks).mkdir()
        finished(tmp_path / ranks, *arguments(model, *then, "--ranks", ranks))
    one, two = (latents_in(tmp_path / ranks) for ranks in ("1", "2"))
    assert torch.equal(one, two)
    blocks = zip(one.split(BLOCK, 2), latents_in(alone).split(BLOCK, 2), strict=True)
    same = [torch.equal(block, before) for block, before in blocks]
    assert same[0]
    assert not same[4]


def test_until_it_is_stopped(model: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, *arguments(model, "--ranks", "2", frames=None), "--duration", "inf")
    command.until_event("block", block=5)
    command.process.send_signal(signal.SIGINT)
    command.end_well()
    there = len(read_video(tmp_path / "v.mp4")[0])
    assert there == len(list(run_folder(tmp_path).glob("*.block-*.pt"))) * 4 * BLOCK - 3
    finished(tmp_path, "extend", str(run_folder(tmp_path)), "--num-frames", "40")
    (tmp_path / "once").mkdir()
    finished(tmp_path / "once", *arguments(model, frames=there + 40))
    assert (tmp_path / "v.mp4").read_bytes() == (tmp_path / "once" / "v.mp4").read_bytes()


def test_windows_alone_and_one_level_by_frame(model: Path, tmp_path: Path) -> None:
    """Windowed runs; fifo is refused, because it needs a timestep for each frame."""
    for ranks in ("1", "2"):
        (tmp_path / ranks).mkdir()
        finished(tmp_path / ranks, *arguments(model, "--ranks", ranks, method="windowed"))
    one, two = (latents_in(tmp_path / ranks) for ranks in ("1", "2"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    code, errors = Command(tmp_path, *arguments(model, method="fifo")).end()
    assert code == 2
    assert says(errors, "fifo .. 'tiny-hunyuan'")
    code, errors = Command(tmp_path, *arguments(model, "--context-timesteps", "true")).end()
    assert code == 2
    assert says(errors, "context_timesteps true needs .. 'tiny-hunyuan' takes one for all: leave it out")


def test_groups_are_decoded_as_they_come(model: Path) -> None:
    """Frames equal those of the whole latents; a block is requested once those before are decoded."""
    loaded = load(read_spec(model), "fp32", stages=("decode",))
    latents = torch.randn(1, loaded.spec.vae.z_dim, 10, 6, 6)
    asked: list[int] = []
    made: list[Any] = []

    def blocks() -> Iterator[Tensor]:
        for block in latents.split([1, 4, 3, 2], dim=2):
            asked.append(len(made))
            yield block

    for frames in decoded(loaded, LatentBlocks(tuple(latents.shape), blocks()), tile=32):
        made.append(frames)
    # Groups of five latent frames begin three apart: the first one yields four of them, the others three.
    assert asked == [0, 0, 4, 7]
    for frames, expected in zip(made, decoded(loaded, latents, tile=32), strict=True):
        assert np.array_equal(frames, expected)


@pytest.mark.parametrize("num_frames", range(1, 12))
def test_a_video_without_end_ends_anywhere(model: Path, num_frames: int) -> None:
    loaded = load(read_spec(model), "fp32", stages=("decode",))
    latents = torch.randn(1, loaded.spec.vae.z_dim, num_frames, 4, 4)
    endless = LatentBlocks((*latents.shape[:2], 2**50, 4, 4), latents.split(2, dim=2), endless=True)
    made, expected = (np.concatenate(list(decoded(loaded, each))) for each in (endless, latents))
    assert np.array_equal(made, expected)
