"""Runs of the bundled model from pictures: resumed from the run's folder alone, and several in a file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made_videos import latents_in
from paradit.shapes.scenes import BACKGROUNDS, COLORS
from paradit.video.reader import read_video
from runs import Command, finished, run_folder

SMALL = ["--num-frames", "9", "--guidance-scale", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("red", "blue"):
        pixels = np.full((96, 96, 3), BACKGROUNDS["blue"], np.uint8)
        pixels[32:64, 32:64] = COLORS[name]
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def made(folder: Path, name: str) -> tuple[torch.Tensor, np.ndarray]:
    return latents_in(folder, name), read_video(folder / f"{name}.mp4")[0]


def test_resumed_without_the_picture(folder: Path) -> None:
    given = ["generate", "a red square moving right", "--image", "red.png", *SMALL]
    given += ["--num-inference-steps", "30", "--checkpoint-steps", "2"]
    finished(folder, *given, "-o", "whole.mp4", "--latents", "whole.safetensors")
    command = Command(folder, *given, "-o", "v.mp4", "--latents", "v.safetensors")
    command.until_event("step", stage="denoise", done=5)
    command.kill()
    (folder / "red.png").unlink()
    resumed = finished(folder, "resume", str(run_folder(folder)))
    steps = [told["done"] for told in resumed.told if told["event"] == "step" and told["stage"] == "denoise"]
    assert steps[0] >= 3 and steps[-1] == 30
    (latents, frames), (expected, pixels) = made(folder, "v"), made(folder, "whole")
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
    assert (frames == pixels).all()


def test_requests_with_different_pictures(folder: Path) -> None:
    """Each video begins or ends with the colour of its own picture."""
    lines = [
        {"prompt": "a red square moving right", "image": "red.png"},
        {"prompt": "a blue square moving right", "last_image": "blue.png"},
    ]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    finished(
        folder,
        "generate",
        "--prompts-file",
        "lines.jsonl",
        *SMALL,
        "--num-inference-steps",
        "4",
        "-o",
        "v.mp4",
    )
    first, last = read_video(folder / "v-00.mp4")[0][0], read_video(folder / "v-01.mp4")[0][-1]
    for frame, colour in ((first, COLORS["red"]), (last, COLORS["blue"])):
        assert np.abs(frame[40:56, 40:56].mean((0, 1)) - colour).max() < 40
        assert np.abs(frame[:8].mean((0, 1)) - BACKGROUNDS["blue"]).max() < 40
