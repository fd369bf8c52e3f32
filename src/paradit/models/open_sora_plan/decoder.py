"""WFVAEModel's decoder, run one latent frame at a time, so that memory does not grow with a video's length.

The decoder interpolates between latent frames. Once a latent frame has arrived, those frames are decoded
that depend on no later one: the first latent frame becomes one frame of the video, the second two, and every
other one four, half of which belong to the latent frame before. The last one becomes two more. The values are
those of a whole decode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from paradit.config.tiles import Tile
from paradit.models.common.blending import as_frames
from paradit.models.common.latent_blocks import LatentBlocks, in_blocks
from paradit.models.common.parking import parked
from paradit.models.open_sora_plan.vae_spec import BANDS, SCALE
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.open_sora_plan.wf_vae_layers import Past
from paradit.models.protocol import Frames


class WfVaeDecoder:
    """Decoder of a video's latents, one latent frame at a time.

    It implements `Decoder`: a piece of that interface is the part of the decoder's output that is known with
    another latent frame. The output is a video transformed by wavelets, of half its height and width.
    """

    def __init__(
        self, vae: WFVAEModel, processor: VideoProcessor, latents: Tensor | LatentBlocks, *, park: bool
    ) -> None:
        """Prepare to decode normalised latents [1, C, F, h, w].

        park: whether a tile's memory (features of its earlier frames) is kept in host memory, not on the GPU,
        while other tiles are decoded.
        """
        self._vae, self._video_processor, self._park = vae, processor, park
        self._latents = in_blocks(latents)
        self.scale: int = SCALE
        self.num_pieces: int = latents.shape[2]

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Return the shape [1, 24, f, H, W] of the decoder's output for latent frame `index` of a tile."""
        frames = (1 if index < 2 else 2) + (0 < index == self.num_pieces - 1)
        return 1, BANDS, frames, tile.rows.size * self.scale, tile.columns.size * self.scale

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """Yield the decoder's output [1, 24, f, H, W] for a tile, for one latent frame at a time.

        If the video ends early, the frame that its last latent frame still lacks is a further piece.
        """
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        whole = (tile.rows.size, tile.columns.size) == tuple(self._latents.shape[3:])
        # On a CPU the memory is the same, but parking keeps the heap unfragmented: see `parked`.
        park = not whole and (self._park or self._vae.device.type == "cpu")
        past = Past(last=False)
        for index in range(self.num_pieces):
            frame = self._latents.frame(index)
            if frame is None:
                if index > 1:
                    yield self._vae.decoder.end(past)
                return
            past.last = index == self.num_pieces - 1
            z = frame[..., rows, columns].to(self._vae.device, self._vae.dtype)
            yield self._next(self._vae.denormalised(z), past, park=park)

    def _next(self, z: Tensor, past: Past, *, park: bool) -> Tensor:
        """Decode a tile's next latent frame, update the tile's memory, and return the decoder's output."""
        if not park:
            bands: Tensor = self._vae.decoder(z, past)
            return bands
        before = past.kept
        past.kept = {layer: part.to(z.device) for layer, part in before.items()}
        bands = self._vae.decoder(z, past)
        past.kept = {layer: parked(part, before.get(layer)) for layer, part in past.kept.items()}
        return bands

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Yield the frames [f, H, W, 3] that are decoded with each latent frame.

        pictures: the decoder's output for each latent frame, with tiles joined.
        """
        for index, picture in enumerate(pictures):
            yield as_frames(self._video_processor, self._vae.pixels(picture, first=index == 0))
