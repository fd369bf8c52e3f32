"""Videos that the VAE encodes for a request's pictures, and how many of their frames at once. Torch-free."""

from __future__ import annotations

from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.spec import ModelSpec


def encoded_latent_frames(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return how many latent frames are encoded of a video that is grey except for a request's pictures.

    All others equal the first one that neither of the pictures affects.
    """
    needed = spec.vae.settled_at + (1 if request.last_image is None else 2)
    return min(needed, latent_shape(request, spec)[1])


def encoded_clips(request: ResolvedRequest, spec: ModelSpec) -> list[int]:
    """Return the numbers of frames of the videos that the VAE encodes for a request's pictures."""
    ratio = spec.vae.temporal_compression
    if request.video is not None:
        return [(latent_shape(request, spec)[1] - 1) * ratio + 1]
    if not request.has_pictures:
        return []
    if spec.transformers[0].in_channels > spec.vae.z_dim:  # pictures are further channels, for all frames
        return [(encoded_latent_frames(request, spec) - 1) * ratio + 1]
    # Each picture stands alone; at the end of a video, it stands for all frames of its latent frame.
    return [1] * (request.image is not None) + [1 + ratio] * (request.last_image is not None)


def num_encoded(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return how many latent frames the VAE encodes for a request's pictures."""
    ratio = spec.vae.temporal_compression
    return sum((frames - 1) // ratio + 1 for frames in encoded_clips(request, spec))


def frames_encoded_at_once(request: ResolvedRequest, spec: ModelSpec) -> int:
    """Return the largest number of frames of a request's pictures in one call of the encoder; 0 if none."""
    # The first call encodes one frame, and each later one the frames of a latent frame.
    clips = encoded_clips(request, spec)
    return max((1 if frames == 1 else spec.vae.temporal_compression for frames in clips), default=0)
