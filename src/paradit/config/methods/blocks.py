"""Base class of the methods that denoise in frame blocks: their options, checks and later prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

from paradit.config.errors import InputError
from paradit.config.limits import MAX_FRAMES, MAX_SECONDS, amount
from paradit.config.methods.method import Method
from paradit.config.options import Option
from paradit.config.placement import Placement, written
from paradit.config.requests import ResolvedRequest, check_text, latent_shape
from paradit.models.spec import ModelSpec
from paradit.scheduling.block_queue import BlockQueue, position_warning


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options for the size of frame blocks, and for how many neighbouring frames each block sees."""

    block_frames: Annotated[
        int | None,
        Option(
            help="Number of latent frames in a frame block. [default: by the model]",
            metavar="N",
            least=1,
            most=MAX_FRAMES,
        ),
    ] = None
    context_frames: Annotated[
        int | None,
        Option(
            help="Number of latent frames of each neighbour that a frame block sees. [default: by the model]",
            metavar="N",
            least=0,
            most=MAX_FRAMES,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BlocksRequest(ResolvedRequest):
    """Resolved request for a video that is made in frame blocks."""

    block_frames: int
    """Number of latent frames in each frame block."""
    context_frames: int
    """Number of latent frames of each neighbour that a frame block sees while it is denoised."""

    def queue(self, spec: ModelSpec) -> BlockQueue:
        """Return the queue of frame blocks into which the video's latent frames are divided."""
        return BlockQueue(
            num_frames=latent_shape(self, spec)[1],
            block_frames=self.block_frames,
            context_frames=self.context_frames,
            num_steps=self.num_inference_steps,
        )

    def block_sizes(self, spec: ModelSpec) -> Iterator[int]:
        queue = self.queue(spec)
        return map(queue.frames_of, queue.blocks())

    def num_blocks(self, spec: ModelSpec) -> int:
        return -(-latent_shape(self, spec)[1] // self.block_frames)

    def window_frames(self, frames: int) -> int:
        return min(frames, self.block_frames + 2 * self.context_frames)

    def start_of(self, block: int, spec: ModelSpec) -> float:
        """Return the time, in seconds from the video's start, at which a frame block begins."""
        # The video's first latent frame decodes to a single frame, each further one to several.
        return max(0, (block * self.block_frames - 1) * spec.vae.temporal_compression + 1) / self.fps

    def prompt_blocks(self, spec: ModelSpec) -> list[int | None]:
        """Return, for each later prompt in `prompts_at`, the index of the first frame block that uses it.

        That is the first block that begins at the prompt's time or later. The index counts from 0; it is None
        if no block begins that late.
        """
        last = self.num_blocks(spec) - 1
        seconds_each = self.block_frames * spec.vae.temporal_compression / self.fps
        found = []
        for seconds, _ in self.prompts_at:
            block = int(seconds / seconds_each)  # the block sought, or one shortly before it
            while block <= last and self.start_of(block, spec) < seconds:
                block += 1
            found.append(block if block <= last else None)
        return found


class InBlocks(Method):
    """Base class of denoising methods that make a video's latents in frame blocks."""

    options: type = BlockOptions
    resolved: ClassVar[type[BlocksRequest]] = BlocksRequest
    streams = solver_by_block = True

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        own = cast(BlockOptions, options)
        # A block and its neighbours' frames make a window as long as the model was trained on.
        longest = spec.trained_latent_frames
        context = own.context_frames
        context = round(longest / 5) if context is None else context
        block = own.block_frames
        block = max(1, context, longest - 2 * context) if block is None else block
        if context > block:
            raise InputError(
                f"context_frames must be at most {block}, the frames of a neighbouring block, got {context}"
            )
        transformer = spec.transformers[0]
        most = transformer.max_positions * transformer.patch_size[0]
        if block + 2 * context > most:
            raise InputError(
                f"block_frames + 2 x context_frames must be at most {most} latent frames (the model's "
                f"positions), got {block} + 2 x {context}"
            )
        return {"block_frames": block, "context_frames": context}

    def check_ranks(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:
        # Blocks are decoded while others are denoised.
        if placement.coprocess:
            raise InputError(f"coprocess does not work with method {self.name}: leave it out")
        both = set(placement.decode_ranks) & set(placement.denoise_ranks[1:])
        if both:
            raise InputError(
                f"rank {written(sorted(both))} cannot denoise a long video and decode it at the same time: "
                f"decode on rank {placement.denoise_ranks[0]}, or on ranks that do not denoise"
            )
        super().check_ranks(placement, request, spec)

    def warnings(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[str]:
        found = super().warnings(placement, request, spec)
        longer = position_warning(in_blocks(request).queue(spec), spec.trained_latent_frames)
        return [*found, longer] if longer else found

    def by_rule(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> str:  # noqa: ARG002
        return f"together: the planner cannot simulate method {self.name}"


def in_blocks(request: ResolvedRequest) -> BlocksRequest:
    """Return the request as a `BlocksRequest`; it must be for a method that denoises in frame blocks."""
    assert isinstance(request, BlocksRequest), request
    return request


def with_later_prompts(
    request: BlocksRequest, prompts_at: list[tuple[Any, Any]], spec: ModelSpec
) -> BlocksRequest:
    """Return the request with its later prompts, after checking them. Raises InputError.

    prompts_at: pairs (time in seconds, prompt), in rising order of time. At least one frame block must begin
    at or after each prompt's time, and before the next prompt's time.
    """
    found, last = [], 0.0
    for seconds, text in prompts_at:
        hint = "the prompt itself applies from 0"
        at = amount("the time of prompts_at", seconds, most=MAX_SECONDS, hint=hint)
        check_text("the text of prompts_at", text)
        if at <= last:
            raise InputError(f"the times of prompts_at must increase, got {at:g} s after {last:g} s")
        found.append((at, text))
        last = at
    if not found:
        return request
    request = replace(request, prompts_at=tuple(found))
    blocks = request.prompt_blocks(spec)
    if blocks[-1] is None:  # times rise, so if any text comes too late, the last one does
        start = request.start_of(request.num_blocks(spec) - 1, spec)
        raise InputError(
            f"prompts_at at {last:g} s has no effect: the last block of this video of "
            f"{request.num_frames / request.fps:g} s begins at {start:g} s"
        )
    for (seconds, _), (later, _), block, same in zip(found, found[1:], blocks, blocks[1:], strict=False):
        if block == same:
            raise InputError(
                f"prompts_at at {seconds:g} s has no effect: no block begins before {later:g} s, when the "
                "next text replaces it"
            )
    return request
