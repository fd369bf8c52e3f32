"""Default request values of a model, as its folder states them. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.limits import MAX_FRAMES, MAX_GUIDANCE, MAX_PROMPT, MAX_SIDE, one_of
from paradit.config.options import ABOVE_ZERO, Option, check


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default values for what a request leaves out; `paradit.json` in a model's folder may set them."""

    width: Annotated[int, Option(least=1, most=MAX_SIDE)]
    """Width of a video in pixels."""
    height: Annotated[int, Option(least=1, most=MAX_SIDE)]
    """Height of a video in pixels."""
    num_frames: Annotated[int, Option(least=1, most=MAX_FRAMES)]
    """Number of frames of a video."""
    fps: Annotated[float, Option(least=0.1, most=1000)]
    """Frames per second of a video's file."""
    num_inference_steps: Annotated[int, Option(least=1, most=1000)]
    """Number of denoising steps."""
    guidance_scale: Annotated[float, Option(least=ABOVE_ZERO, most=MAX_GUIDANCE)]
    """Guidance scale; 1: no guidance."""
    guidance_scale_2: Annotated[float | None, Option(least=ABOVE_ZERO, most=MAX_GUIDANCE)] = None
    """Guidance scale of the low-noise expert, for models with two experts; None: the same as guidance_scale.
    """
    negative_prompt: Annotated[str, Option()] = ""
    """Text that says what a video must not show."""
    train_frames: Annotated[tuple[int, int] | None, Option(least=1, most=MAX_FRAMES)] = None
    """Shortest and longest video, in frames, that the model was trained on; None if not known."""
    takes: Annotated[tuple[str, ...], Option()] = ()
    """Names of the pictures that a request may give, for a model of a text-to-video class that was trained
    with a noise level for each latent frame: it takes these frames without noise."""

    def __post_init__(self) -> None:
        check(self)
        for picture in self.takes:
            one_of("takes", picture, ("image", "last_image"))
        if len(self.negative_prompt) > MAX_PROMPT:
            raise InputError(f"negative_prompt is at most {MAX_PROMPT} characters long")
        if self.train_frames and self.train_frames[0] > self.train_frames[1]:
            raise InputError(f"train_frames must be the shortest and the longest, got {self.train_frames}")
