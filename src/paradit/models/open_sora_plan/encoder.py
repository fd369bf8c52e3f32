"""WFVAEModel's encoder, run a few frames at a time, so that memory does not grow with a video's length.

It may also run in tiles of the picture, one after another; the model's authors encode whole pictures. In
tiles, attention in the encoder's middle sees only its tile, so the latents differ a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paradit.config.tiles import Grid, Tile
from paradit.models.common.blending import join
from paradit.models.open_sora_plan.vae_spec import COMPRESSION
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.open_sora_plan.wf_vae_layers import Past
from paradit.models.protocol import untold

Pieces = Callable[[], Iterable[Tensor]]
"""Type of a function that returns a video's pixels [1, 3, f, H, W], from -1 to 1, one piece at a time.

The first piece is one frame; each later one has a multiple of four.
"""


@torch.no_grad()
def encoded(
    vae: WFVAEModel,
    pieces: Pieces,
    grid: Grid,
    generator: torch.Generator,
    told: Callable[[int], None] = untold,
) -> Tensor:
    """Return normalised latents [1, C, F, h, w] of a video, drawn from the encoder's distribution.

    pieces: function that returns the video's pixels (`Pieces`), called once for each tile. grid: the tiles to
    encode, in latent pixels; their means and log-variances are blended. generator: random generator on a CPU,
    for the noise. The noise is drawn at once, so that it does not depend on how the video is cut into pieces.
    told: function that is called with the number of latent frames encoded so far; one that is encoded in
    tiles counts when as much is done as all its tiles.
    """
    done = 0

    def distribution(tile: Tile) -> Tensor:
        """Return the mean and the log-variance of a tile's latents, [1, 2 C, F, h, w]."""
        nonlocal done
        past, made = Past(), []
        rows, columns = (
            slice(COMPRESSION * span.start, COMPRESSION * span.stop) for span in (tile.rows, tile.columns)
        )
        for piece in pieces():
            pixels = piece[..., rows, columns].to(vae.device, vae.dtype)
            made.append(torch.cat(vae.encode(pixels, past), dim=1))
            before, done = done, done + made[-1].shape[2]
            if done // grid.num_tiles > before // grid.num_tiles:
                told(done // grid.num_tiles)
        return torch.cat(made, dim=2)

    mean, log_variance = join(grid, [distribution(tile) for tile in grid.tiles], 1).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return vae.normalised(mean + (0.5 * log_variance).exp() * noise)
