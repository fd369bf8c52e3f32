"""Latents and frames of the videos that a test's runs have made."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from paradit.video.reader import read_video


def latents_in(folder: Path, name: str | int = "l") -> Tensor:
    """Return the latents in a folder's file `name`.safetensors."""
    return load_file(folder / f"{name}.safetensors")["latents"]


def video_in(folder: Path, number: int) -> tuple[Tensor, np.ndarray]:
    """Return latents and frames of video `number`, from l-00.safetensors and v-00.mp4 and so on."""
    return latents_in(folder, f"l-{number:02d}"), read_video(folder / f"v-{number:02d}.mp4")[0]
