"""Decode, the last stage: turns latents into frames on demand, in smaller tiles if memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

from torch import Tensor

from paradit.config.tiles import Grid
from paradit.device_memory import give_back_unused, ran_out
from paradit.distributed.agreement import FAILED, NO_MEMORY, Agreement, Ended
from paradit.distributed.world import World
from paradit.models.common.blending import join
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.protocol import Decoder, Frames, VideoModel
from paradit.progress import Progress
from paradit.stages.smaller_tiles import smaller_tile

T = TypeVar("T")


class Undecoded(Exception):
    """Error that a consumer of frames raises when it wants no more frames."""


def decode(
    model: VideoModel,
    latents: Tensor | LatentBlocks,
    tile: int | None,
    progress: Progress,
    consume: Callable[[Generator[Frames]], T],
    *,
    world: World | None = None,
) -> T | None:
    """Decode latents [1, C, F, h, w], pass the frames to `consume`, and return the result of `consume`.

    Reported as stage "decode". tile: the side of a tile in pixels; None: the whole picture is decoded at
    once. world: the ranks that share the tiles, all of which call this with the same latents; None: this
    process decodes alone. Only the first rank calls `consume`, and the others return None.

    If memory runs out, decoding starts again with smaller tiles: `progress` is warned, and `consume` is
    called again. Raises OutOfMemory, on all ranks, if there are no smaller tiles, or if the latents are a
    stream (`LatentBlocks`), which cannot be read twice. An OSError or `Undecoded` that `consume` raises, and
    the FloatingPointError that is raised for frames with NaN, end decoding on all ranks, but only the first
    rank raises them.
    """
    park = False
    while True:
        agreement = Agreement(world, model.device)
        stream = frames(model, latents, tile, progress, agreement, park=park)
        outcome, made = _attempted(stream, agreement, consume)
        if outcome != NO_MEMORY:
            return made
        # Only here, because the error itself held the tensors of the failed agreement.
        give_back_unused(model.device)
        height, width = (model.spec.vae.spatial_compression * side for side in latents.shape[3:])
        can_repeat = not isinstance(latents, LatentBlocks)
        tile = smaller_tile(
            model.spec.vae, (height, width), tile, "decoding", progress, can_repeat=can_repeat
        )
        park = True  # from now on, caches of tiles that wait are kept off the device


def _attempted(
    stream: Generator[Frames], agreement: Agreement, consume: Callable[[Generator[Frames]], T]
) -> tuple[int | None, T | None]:
    """Try once to decode on all ranks that share the tiles; return two values, one of which is None.

    They are (None, result of `consume`) or, if a rank could not decode, (outcome, None), where the outcome is
    NO_MEMORY or FAILED.
    """
    try:
        with closing(stream):
            made = None
            if agreement.rank == 0:
                made = consume(stream)
            else:
                deque(stream, maxlen=0)  # yields no frame, but decodes and sends this rank's tiles
        agreement.agree()
        return None, made
    except Ended as ended:
        return ended.args[0], None
    except Exception as error:
        if not ran_out(error):
            if isinstance(
                error, OSError | Undecoded | FloatingPointError
            ):  # the other ranks end this decode, too
                agreement.report(FAILED)
            raise
        return agreement.report(NO_MEMORY), None


def frames(
    model: VideoModel,
    latents: Tensor | LatentBlocks,
    tile: int | None,
    progress: Progress,
    agreement: Agreement | None = None,
    *,
    park: bool = False,
) -> Generator[Frames]:
    """Yield the frames of latents [1, C, F, h, w] as [H, W, 3], each decoded only when it is requested.

    Reported as stage "decode". tile: the side of a tile in pixels; None: the whole picture is decoded at
    once. agreement: object by which ranks that decode together exchange tiles, and stop together if one of
    them fails; None: this process decodes alone. Only the first of these ranks yields frames. park: whether
    the decoder's cache for a tile is kept in host memory, not on the device, while other tiles are decoded.
    """
    vae = model.spec.vae
    height, width = (size * vae.spatial_compression for size in latents.shape[3:])
    if isinstance(latents, LatentBlocks):
        latents.wait()  # outside the stage: does not count as decode time
    decoder = model.decoder(latents, park=park)
    samples = pictures(decoder, vae.grid(height, width, tile), agreement or Agreement(None, model.device))
    endless = isinstance(latents, LatentBlocks) and latents.endless
    with progress.stage("decode", total=0 if endless else latents.shape[2]):
        for latent_frame, part in enumerate(decoder.frames(samples)):
            progress.step("decode", latent_frame + 1)
            yield from part


def pictures(decoder: Decoder, grid: Grid, agreement: Agreement) -> Iterator[Tensor]:
    """Yield the decoded video on the first decode rank, a few frames at a time, each joined from tiles.

    Other ranks yield nothing. Each rank decodes some of the tiles, and all tiles advance by a few frames at a
    time. agreement: object by which the ranks exchange tiles, and stop together if one of them fails.
    """
    tiles, hands = grid.tiles, grid.dealt(agreement.num_ranks)
    mine = [decoder.pieces(tiles[number]) for number in hands[agreement.rank]]
    for index in range(decoder.num_pieces):
        shapes = [[decoder.piece_shape(index, tiles[number]) for number in hand] for hand in hands]
        made = [piece for pieces in mine if (piece := next(pieces, None)) is not None]
        if mine and not made:
            return  # the video was stopped, and no other rank waits for a piece
        by_rank = agreement.gather(made, shapes)
        if agreement.rank == 0:
            by_tile = {
                number: piece
                for hand, pieces in zip(hands, by_rank, strict=True)
                for number, piece in zip(hand, pieces, strict=True)
            }
            picture = join(grid, [by_tile.pop(number) for number in range(len(tiles))], decoder.scale)
            del by_rank  # memory that the frames may need
            yield picture
