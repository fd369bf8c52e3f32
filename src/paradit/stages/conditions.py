"""Encoding of pictures, beside that of texts: turns a request's pictures into conditions of its denoising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from torch import Tensor

from paradit.config.encoded_pictures import num_encoded
from paradit.config.errors import OutOfMemory
from paradit.config.requests import ResolvedRequest
from paradit.device_memory import give_back_unused, ran_out
from paradit.inputs.pictures import fitted_picture
from paradit.inputs.videos import fitted_video
from paradit.models.protocol import Frames, Pixels, VideoModel
from paradit.progress import Progress
from paradit.stages.smaller_tiles import smaller_tile


def conditions(model: VideoModel, request: ResolvedRequest, progress: Progress) -> tuple[Tensor, ...]:
    """Read a request's pictures, and return them encoded, as tensors in fp32.

    Reported as stage "conditions", with a step for each latent frame. If memory runs out, encoding starts
    again with smaller tiles, and `progress` is warned. Raises InputError if a file cannot be read, and
    OutOfMemory if there are no smaller tiles.
    """
    pictures, size = cache(partial(_read, request)), (request.height, request.width)
    while (encoded := _attempted(model, request, pictures, progress)) is None:
        # Only here, because the error itself held the tensors of the failed attempt.
        give_back_unused(model.device)
        tile = smaller_tile(model.spec.vae, size, request.vae_tile, "encoding", progress)
        request = replace(request, vae_tile=tile)
    return encoded


def _read(request: ResolvedRequest) -> Pixels:
    try:
        return pixels(request)
    except MemoryError:
        raise OutOfMemory("memory ran out while reading the pictures: use smaller files") from None


def _attempted(
    model: VideoModel, request: ResolvedRequest, pictures: Callable[[], Pixels], progress: Progress
) -> tuple[Tensor, ...] | None:
    """Return the encoded pictures; None if memory ran out.

    pictures: function that reads the pictures when it is first called, and returns them.
    """
    try:
        with progress.stage("conditions", total=num_encoded(request, model.spec)):
            return model.encode_conditions(request, pictures(), partial(progress.step, "conditions"))
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        return None


def pixels(request: ResolvedRequest) -> Pixels:
    """Return a request's pictures, read from their files and fitted to the size of its video."""
    size = request.width, request.height, request.fit

    def picture(path: str | None) -> Frames | None:
        return fitted_picture(path, *size) if path else None

    video = None
    if request.video:
        video = fitted_video(request.video, *size, fps=request.fps, num_frames=request.num_frames)
    return Pixels(image=picture(request.image), last_image=picture(request.last_image), video=video)
