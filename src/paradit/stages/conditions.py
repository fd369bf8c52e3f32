"""Encoding of pictures, beside that of texts: turns a request's pictures into conditions of its denoising."""

from __future__ import annotations

from torch import Tensor

from paradit.config.errors import OutOfMemory
from paradit.config.requests import ResolvedRequest
from paradit.device_memory import ran_out
from paradit.inputs.pictures import fitted_picture
from paradit.inputs.videos import fitted_video
from paradit.models.protocol import Frames, Pixels, VideoModel
from paradit.progress import Progress


def conditions(model: VideoModel, request: ResolvedRequest, progress: Progress) -> tuple[Tensor, ...]:
    """Read a request's pictures, and return them encoded, as tensors in fp32.

    Reported as stage "conditions". Raises InputError if a file cannot be read, and OutOfMemory if memory runs
    out.
    """
    with progress.stage("conditions"):
        try:
            return model.encode_conditions(request, pixels(request))
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            raise OutOfMemory("memory ran out while encoding the pictures: use a smaller vae_tile") from None


def pixels(request: ResolvedRequest) -> Pixels:
    """Return a request's pictures, read from their files and fitted to the size of its video."""
    size = request.width, request.height, request.fit

    def picture(path: str | None) -> Frames | None:
        return fitted_picture(path, *size) if path else None

    video = None
    if request.video:
        video = fitted_video(request.video, *size, fps=request.fps, num_frames=request.num_frames)
    return Pixels(image=picture(request.image), last_image=picture(request.last_image), video=video)
